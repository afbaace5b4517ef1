"""Settings that make the quickstart a run of seconds: few, small scenes and a teacher of random weights."""

TINY = (
    "data.size=[64, 96]",
    "data.scenes={train: 8, val: 3}",
    "data.loader=torch",
    "teacher.options={decoder_channels: 16}",
    "teacher.encoder=tu-mobilenetv3_small_050",
    "teacher.train.epochs=1",
    "teacher.train.batch_size=4",
    "student.options={decoder_channels: 16}",
    "distill.train.epochs=1",
    "distill.train.batch_size=4",
)
