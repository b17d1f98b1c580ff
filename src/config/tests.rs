use super::*;

const MINIMAL: &str = "data.train = \"faces\"\ntrain.out = \"runs/a\"\n";

/// The example of the interface, which is also the list of the defaults.
const FULL: &str = r#"
[model]
arch = "ir50"
input = [112, 112]
embedding = 512
dropout = 0.4
width = 64
[head]
kind = "cosface"
margin = 0.4
scale = 64.0
arc_mode = "straight-through"
[data]
train = "faces"
shuffle = true
augment = ["mirror"]
resize = false
[optim]
lr = 0.1
momentum = 0.9
weight_decay = 5e-4
schedule = { kind = "multistep", milestones = [16, 24], gamma = 0.1 }
clip_norm = 0.0
[train]
out = "runs/a"
epochs = 28
max_steps = 0
batch_size = 512
accumulate = 1
precision = "f32"
seed = 1
checkpoint_every = 1000
keep_checkpoints = 3
eval = []
log_every = 20
hard_cosine = 0.3
"#;

fn read(sets: &[&str]) -> Result<Config> {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Config::from_toml(MINIMAL, &sets)
}

/// The message of the error that `sets` cause on top of the minimal configuration; it must be a wrong usage.
#[track_caller]
fn refusal(sets: &[&str]) -> String {
    let error = read(sets).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
    error.to_string()
}

#[track_caller]
fn refused(set: &str, parts: &[&str]) {
    let message = refusal(&[set]);
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn defaults_are_those_of_the_interface() {
    let minimal = read(&[]).unwrap();
    assert_eq!(minimal, Config::from_toml(FULL, &[]).unwrap());
    assert_eq!(minimal.head.epl, None);
    assert_eq!(minimal.optim.schedule, Schedule::Multistep { milestones: vec![16, 24], gamma: 0.1 });
}

#[test]
fn empty_epl_table_means_epl_with_its_defaults() {
    let text = format!("{MINIMAL}[head.epl]\n");
    let epl = Config::from_toml(&text, &[]).unwrap().head.epl.unwrap();
    assert_eq!(epl, EplSettings::default());
    assert_eq!((epl.k, epl.start_epoch), (0.7, 4));
    assert_eq!((epl.update, epl.duplicates), (EplUpdate::Softsign, Duplicates::Last));
}

#[test]
fn resolved_configuration_reads_back() {
    let sets = [
        "head.epl={}",
        "head.epl.update=sigmoid-paper",
        "head.kind=arcface",
        "head.margin=0.5",
        "model.blocks=[1, 2, 3, 4]",
        "model.init=w.safetensors",
        "data.num_classes=40",
        "data.augment=[]",
        "optim.schedule={kind=\"polynomial\", power=2, warmup_epochs=0.5}",
        "train.eval=[\"lfw.bin\", \"agedb_30.bin\"]",
        "train.seed=9223372036854775807",
    ];
    let config = read(&sets).unwrap();
    let text = config.to_toml().unwrap();
    assert_eq!(Config::from_toml(&text, &[]).unwrap(), config, "{text}");
    assert_eq!(config.head.epl.unwrap().update, EplUpdate::SigmoidPaper);
    assert_eq!(config.train.eval, [PathBuf::from("lfw.bin"), PathBuf::from("agedb_30.bin")]);
    let kinds =
        ["mirror", "crop", "shift", "scale", "rotate", "jitter", "grey", "blur", "low_resolution", "erase"];
    for kind in kinds {
        let named = read(&[&format!("data.augment=[\"{kind}\"]")]).unwrap();
        let text = named.to_toml().unwrap();
        assert_eq!(Config::from_toml(&text, &[]).unwrap(), named, "{text}");
        let table = read(&[&format!("data.augment=[{{kind=\"{kind}\"}}]")]).unwrap();
        assert_eq!(table, named, "a name stands for the defaults");
        let rare = read(&[&format!("data.augment=[{{probability=0.125, kind=\"{kind}\"}}]")]).unwrap();
        assert_eq!(rare.data.augment[0].probability, 0.125);
        let text = rare.to_toml().unwrap();
        assert_eq!(Config::from_toml(&text, &[]).unwrap(), rare, "{text}");
    }
    assert!(read(&[]).unwrap().to_toml().unwrap().contains("augment = [\"mirror\"]"));
    for schedule in ["multistep", "polynomial", "cosine", "constant"] {
        let config = read(&[&format!("optim.schedule.kind={schedule}")]).unwrap();
        assert_eq!(Config::from_toml(&config.to_toml().unwrap(), &[]).unwrap(), config);
    }
}

#[test]
fn required_keys() {
    let error = Config::from_toml("train.out = \"a\"", &[]).unwrap_err();
    assert!(error.to_string().contains("`data.train` is missing"), "{error}");
    let error = Config::from_toml("data.train = \"a\"", &[]).unwrap_err();
    assert!(error.to_string().contains("`train.out` is missing"), "{error}");
}

#[test]
fn unknown_keys_name_the_nearest() {
    refused("optim.lrr=1", &["unknown key `optim.lrr`", "`optim.lr`"]);
    refused("head.epl.start_epoh=1", &["unknown key `head.epl.start_epoh`", "`head.epl.start_epoch`"]);
    refused("optim.schedule.gama=1", &["unknown key `optim.schedule.gama`", "`optim.schedule.gamma`"]);
    refused("modle.arch=ir18", &["unknown key `modle`", "`model`"]);
    refused("data.batch_size=4", &["unknown key `data.batch_size`", "`train.batch_size`"]);
    refused("lr=4", &["unknown key `lr`", "`optim.lr`"]);
    refused("train.zzz=4", &["unknown key `train.zzz`", "nearest known key is `train."]);
}

#[test]
fn wrong_types_name_key_found_and_expected() {
    refused("optim.lr=fast", &["`optim.lr`", "\"fast\"", "a number"]);
    refused("train.epochs=1.5", &["`train.epochs`", "1.5", "a whole number"]);
    refused("train.epochs=-1", &["`train.epochs`", "-1", "a whole number"]);
    refused("data.shuffle=1", &["`data.shuffle`", "found 1", "true or false"]);
    refused("data.train=3", &["`data.train`", "found 3", "path"]);
    refused("model.input=112", &["`model.input`", "found 112", "a list of 2"]);
    refused("model.input=[112]", &["`model.input`", "a list of 1", "a list of 2"]);
    refused("model.input=[112, 112, 3]", &["`model.input`", "a list of 3", "a list of 2"]);
    refused("model.input=[112, true]", &["`model.input[1]`", "found true", "a whole number"]);
    refused("head=cosface", &["`head`", "\"cosface\"", "a table"]);
    refused("head.kind=cosfase", &["`head.kind`", "\"cosfase\"", "\"softmax\"", "perhaps \"cosface\""]);
    refused("head.kind=1", &["`head.kind`", "found 1", "\"softmax\""]);
    refused("optim.schedule=constant", &["`optim.schedule`", "\"constant\"", "a table"]);
    refused("optim.schedule.kind=step", &["`optim.schedule.kind`", "\"step\"", "\"multistep\""]);
    let error = Config::from_toml("train.epochs = 1979-05-27", &[]).unwrap_err();
    assert!(error.to_string().contains("`train.epochs`: found the date 1979-05-27"), "{error}");
}

#[test]
fn broken_toml_shows_the_place() {
    let error = Config::from_toml("[train\nout = 1", &[]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn overrides() {
    let config = read(&[
        "optim.lr=1",
        "optim.lr = 0.05",
        "model.arch=ir18",
        "train.out=runs/2026-01-31=b",
        "data.resize=true",
    ])
    .unwrap();
    assert_eq!(config.optim.lr, 0.05, "later overrides win");
    assert_eq!(config.model.arch, "ir18");
    assert_eq!(config.train.out, PathBuf::from("runs/2026-01-31=b"));
    assert!(config.data.resize);
    assert_eq!(read(&["train.out=2026-01-31"]).unwrap().train.out, PathBuf::from("2026-01-31"));

    assert!(refusal(&["optim.lr"]).contains("found no `=`"));
    assert!(refusal(&["optim..lr=1"]).contains("`optim..lr`"));
    assert!(refusal(&["=1"]).contains("found the key ``"));
    assert!(refusal(&["data.augment=[mirror]"]).contains("not a TOML value"));
    assert!(refusal(&["data.train.x=1"]).contains("`data.train` is a value"));
    // A line break must not smuggle in a second key.
    assert!(refusal(&["train.epochs=1\nx = 2"]).contains("`train.epochs`"));
}

#[test]
fn ranges() {
    refused("model.arch=ir51", &["`model.arch`", "\"ir51\"", "ir50"]);
    refused("model.input=[112, 100]", &["`model.input`", "[112, 100]", "divisible by 16"]);
    refused("model.input=[0, 112]", &["`model.input`"]);
    refused("model.embedding=0", &["`model.embedding`", "found 0"]);
    refused("model.width=0", &["`model.width`"]);
    for key in ["model.width", "model.embedding", "data.num_classes", "train.batch_size"] {
        refused(&format!("{key}=9000000000000000000"), &[&format!("`{key}`")]);
    }
    refused("model.blocks=[9000000000000000000, 1, 1, 1]", &["`model.blocks`"]);
    refused("model.input=[9000000000000000000, 16]", &["`model.input`"]);
    refused("model.blocks=[1, 0, 1, 1]", &["`model.blocks`", "[1, 0, 1, 1]"]);
    refused("model.dropout=1.0", &["`model.dropout`", "found 1"]);
    refused("model.dropout=nan", &["`model.dropout`", "NaN"]);
    refused("head.margin=1.0", &["`head.margin`", "[0, 1)"]);
    refused("head.margin=-0.1", &["`head.margin`"]);
    refused("head.scale=0", &["`head.scale`"]);
    refused("head.sample_rate=0", &["`head.sample_rate`", "above 0"]);
    refused("head.sample_rate=1.5", &["`head.sample_rate`", "1.5"]);
    refused("head.form=tyled", &["`head.form`", "\"tyled\"", "perhaps \"tiled\""]);
    refused("head.scale=inf", &["`head.scale`"]);
    refused("head.epl.k=1.1", &["`head.epl.k`"]);
    refused("head.epl.start_epoch=0", &["`head.epl.start_epoch`"]);
    refused("data.num_classes=1", &["`data.num_classes`"]);
    refused("optim.lr=0", &["`optim.lr`"]);
    refused("optim.momentum=1.0", &["`optim.momentum`"]);
    refused("optim.weight_decay=-1", &["`optim.weight_decay`"]);
    refused("optim.clip_norm=-1", &["`optim.clip_norm`"]);
    refused("optim.schedule.milestones=[24, 16]", &["`optim.schedule.milestones`", "ascending"]);
    refused("optim.schedule.milestones=[0, 16]", &["`optim.schedule.milestones`"]);
    refused("optim.schedule={kind=\"cosine\", warmup_epochs=28}", &["warmup_epochs`", "train.epochs = 28"]);
    refused("optim.schedule={kind=\"polynomial\", power=0}", &["`optim.schedule.power`"]);
    refused("optim.schedule={kind=\"cosine\", gamma=0.1}", &["`optim.schedule`", "`gamma`", "warmup_epochs"]);
    refused("train.epochs=0", &["`train.epochs`"]);
    refused("train.batch_size=1", &["`train.batch_size`", "2 to 65536"]);
    refused("train.log_every=0", &["`train.log_every`"]);
    for value in ["1.01", "-1.01", "nan"] {
        refused(&format!("train.hard_cosine={value}"), &["`train.hard_cosine`", "[-1, 1]"]);
    }
    assert!(refusal(&["head.kind=arcface", "head.margin=1.6"]).contains("pi/2"));
    assert!(refusal(&["head.form=materialized", "head.sample_rate=0.5"]).contains("`head.form`"));
    for tiled in ["head.form=tiled", "head.sample_rate=0.5"] {
        assert!(refusal(&[tiled, "model.embedding=510"]).contains("a multiple of 4"));
    }
    assert!(read(&["head.kind=arcface", "head.margin=1.2"]).is_ok());
    assert!(read(&["optim.clip_norm=5"]).is_ok());
}

#[test]
fn what_is_out_of_range_or_not_there_is_refused() {
    refused("train.precision=half", &["train.precision", "half", "mixed"]);
    refused("train.keep_checkpoints=0", &["`train.keep_checkpoints`", "1 or more"]);
    refused("data.augment=[\"flip\"]", &["`data.augment[0]`", "\"flip\"", "\"mirror\""]);
    refused("data.augment=[\"mirror\", \"mirror\"]", &["`data.augment`", "2 times"]);
    let table =
        |table: &str, parts: &[&str]| refused(&format!("data.augment=[\"mirror\", {{{table}}}]"), parts);
    table("kind=\"shft\"", &["`data.augment[1].kind`", "\"shft\"", "perhaps \"shift\""]);
    table("kind=\"shift\", pixel=3", &["data.augment[1].pixel`", "data.augment[1].pixels"]);
    table(
        "kind=\"shift\", sigma=[1, 2]",
        &["`data.augment[1]`", "`sigma`", "\"shift\"", "probability, pixels"],
    );
    table("kind=\"shift\", pixels=0", &["`data.augment[1].pixels`", "found 0", "1 to 256"]);
    table("kind=\"shift\", pixels=2.5", &["`data.augment[1].pixels`", "2.5", "whole number"]);
    table("pixels=3", &["`data.augment[1]`", "without the key `kind`"]);
    table("kind=\"grey\", probability=1.5", &["`data.augment[1].probability`", "1.5", "0 to 1"]);
    table("kind=\"blur\", sigma=[2, 1]", &["`data.augment[1].sigma`", "[2, 1]", "ascending", "above 0"]);
    table("kind=\"blur\", sigma=[1]", &["`data.augment[1].sigma`", "a list of 1", "a list of 2"]);
    table("kind=\"scale\", range=[0.01, 1]", &["`data.augment[1].range`", "0.25 to 4"]);
    table("kind=\"jitter\", hue=0.6", &["`data.augment[1].hue`", "0 to 0.5"]);
    table("kind=\"erase\", fill=\"white\"", &["`data.augment[1].fill`", "\"white\"", "\"noise\""]);
    refused("data.augment=[3]", &["`data.augment[0]`", "found 3", "the name of an augmentation"]);
}

#[test]
fn networks_have_the_width_and_dropout_of_their_publication() {
    let model = |overrides: &[&str]| read(overrides).unwrap().model;
    for arch in ["ir18", "ir34", "ir50", "ir100", "ir200"] {
        let model = model(&[&format!("model.arch={arch}")]);
        assert_eq!((model.width, model.dropout), (64, 0.4), "{arch}");
    }
    for arch in ["iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200"] {
        let model = model(&[&format!("model.arch={arch}")]);
        assert_eq!((model.width, model.dropout), (64, 0.0), "{arch}");
    }
    let mobile = model(&["model.arch=mobilefacenet"]);
    assert_eq!((mobile.width, mobile.dropout), (128, 0.0));
    let own = model(&["model.dropout=0.1", "model.width=16", "model.arch=mobilefacenet"]);
    assert_eq!((own.width, own.dropout), (16, 0.1));
    refused("model.arch=iresnet51", &["`model.arch`", "\"iresnet51\"", "mobilefacenet"]);
    refused("model.arch=5", &["`model.arch`", "found 5"]);
    let odd = read(&["model.arch=mobilefacenet", "model.width=9"]).unwrap_err().to_string();
    assert!(odd.contains("`model.width`") && odd.contains("a multiple of 2"), "{odd}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("no/such/file.toml"), &[]).unwrap_err();
    assert!(error.to_string().contains("no/such/file.toml"));
}
