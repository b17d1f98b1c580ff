//! The `epl` command as scripts use it: what is on which stream, and the exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a call of `epl` left behind.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).expect("one JSON value on standard output");
        assert!(value.is_object(), "{}", self.stdout);
        value
    }

    /// Fails unless the call failed with `code`, nothing on standard output and one error that has all of `words`.
    fn fails_with(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert_eq!(self.stdout, "");
        let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        // Drivers print lines of their own, some of them like errors.
        let of_drivers =
            self.stderr.lines().filter(|line| line.starts_with("error: XDG_RUNTIME_DIR")).count();
        assert_eq!(errors - of_drivers, 1, "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word} is not in: {}", self.stderr);
        }
    }
}

fn epl_in(folder: Option<&Path>, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_epl"));
    // Embeddings are kept in the folder of the test.
    command
        .args(arguments)
        .env_remove("EPL_DEVICE")
        .env("EPL_CACHE", "cache")
        .env("EPL_KERNEL_CACHE", "off")
        .envs(environment.iter().copied());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let output = command.output().unwrap();
    let ran = Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert!(!ran.stderr.contains("panicked"), "epl {}: {}", arguments.join(" "), ran.stderr);
    ran
}

fn epl_with(arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    epl_in(None, arguments, environment)
}

fn epl(arguments: &[&str]) -> Ran {
    epl_with(arguments, &[])
}

/// The full names of the commands below `command`, called `name`: those without commands of their own.
fn leaves(command: &clap::Command, name: &str, found: &mut Vec<String>) {
    let children: Vec<_> = command.get_subcommands().filter(|child| child.get_name() != "help").collect();
    if children.is_empty() {
        found.push(name.to_owned());
    }
    for child in children {
        leaves(child, format!("{name} {}", child.get_name()).trim(), found);
    }
}

/// The arguments of the examples (`  epl ...`) in a help text, without what is for the shell or the reader.
fn examples(help: &str) -> Vec<Vec<String>> {
    let lines = help.lines().filter_map(|line| {
        let (before, call) = line.trim().split_once("epl ")?;
        (line.starts_with("  ") && (before.is_empty() || before.starts_with("EPL_DEVICE="))).then_some(call)
    });
    lines
        .map(|call| {
            let call = call.split("  ").next().unwrap_or(call);
            let words = call.split(' ').take_while(|word| !["|", ">", "2>", "&&"].contains(word));
            std::iter::once("epl").chain(words).map(|word| word.trim_matches('\'').to_owned()).collect()
        })
        .collect()
}

#[test]
fn the_help_of_every_command_has_an_example_that_is_valid() {
    let mut commands = Vec::new();
    leaves(&epl::cli::command(), "", &mut commands);
    assert!(commands.len() > 10);
    for name in commands {
        let words: Vec<&str> = name.split(' ').collect();
        let help = epl(&[&words[..], &["--help"]].concat());
        assert_eq!(help.code, Some(0), "{name}");
        assert_eq!(help.stderr, "", "{name}");
        let examples = examples(&help.stdout);
        assert!(!examples.is_empty(), "{name} has no example: {}", help.stdout);
        for example in examples {
            assert_eq!(example[1..=words.len()], words, "{name}");
            let parsed = epl::cli::command().try_get_matches_from(&example);
            assert!(parsed.is_ok(), "{name}: {example:?}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &["trane"][..],
        &["ops", "list", "--jsn"],
        &["ops", "test", "--checks", "maybe"],
        &["ops", "perf", "--repeats", "0"],
        &["ops", "dump"],
        &["train"],
        &["eval", "verify", "--weights", "w"],
        &["embed", "--weights", "w", "--out", "f"],
    ] {
        epl(arguments).fails_with(2, &[]);
    }
    assert_eq!(epl(&[]).code, Some(2));
    assert_eq!(epl(&["--version"]).code, Some(0));
}

#[test]
fn an_unknown_op_is_named_with_the_known_ones() {
    for command in ["list", "test", "grad", "perf"] {
        epl(&["ops", command, "prelu", "no_such_op"]).fails_with(2, &["no_such_op", "hint: ", "prelu_grad"]);
    }
}

#[test]
fn ops_list_counts_cases() {
    let listing = epl(&["ops", "list", "--json"]).json();
    let ops = listing["ops"].as_array().unwrap();
    let names: Vec<&str> = ops.iter().map(|op| op["name"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.contains(&"add") && names.contains(&"epl_update"), "{names:?}");
    let add = &ops[names.iter().position(|name| *name == "add").unwrap()];
    assert!(add["kernels"].as_array().unwrap().contains(&serde_json::json!("add")), "{}", add["kernels"]);
    assert!(add["cases"].as_u64().unwrap() > 0 && add["gradient_cases"].as_u64().unwrap() > 0);

    let text = epl(&["ops", "list", "add"]);
    assert_eq!(text.stdout.lines().count(), 2, "{}", text.stdout);
}

#[test]
fn ops_test_compares_with_the_reference() {
    let ran = epl(&["ops", "test", "add", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let findings = ran.json();
    assert_eq!(findings["passed"], true);
    assert_eq!(findings["failures"], serde_json::json!([]));
    let add = &findings["ops"][0];
    let both = add["runs"].as_u64().unwrap();
    let ratio = add["worst"]["ratio"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&ratio), "{ratio}");

    let once = epl(&["ops", "test", "add", "--json", "--checks", "off"]).json();
    assert_eq!(once["ops"][0]["runs"].as_u64().unwrap() * 2, both);
}

#[test]
fn ops_grad_needs_no_adapter() {
    let ran = epl_with(&["ops", "grad", "add", "prelu", "--json"], &NO_DRIVERS);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let findings = ran.json();
    assert_eq!(findings["passed"], true);
    assert!(findings["ops"].as_array().unwrap().iter().all(|op| op["runs"].as_u64().unwrap() > 0));
}

#[test]
fn ops_perf_measures() {
    let ran = epl(&["ops", "perf", "target_cosine", "--repeats", "1", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let row = &ran.json()["perf"][0];
    assert!(row["ms"].as_f64().unwrap() > 0.0);
    assert!(row["gbytes_per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn ops_dump_writes_every_module_without_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a").join("shaders");
    let ran = epl_with(&["ops", "dump", "--json", "--out", out.to_str().unwrap()], &NO_DRIVERS);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.json()["modules"].as_array().unwrap().len(), epl_shaders::modules().len());
    for (name, source) in epl_shaders::modules() {
        let written = std::fs::read_to_string(out.join(format!("{name}.wgsl"))).unwrap();
        assert_eq!(written, source, "{name}");
    }
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), epl_shaders::modules().len());

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    epl(&["ops", "dump", "--out", file.to_str().unwrap()]).fails_with(1, &["file"]);
}

#[test]
fn devices_lists_the_adapter_that_is_used() {
    let ran = epl(&["devices", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let listing = ran.json();
    assert_eq!(listing["chosen"], 0);
    let first = &listing["adapters"][0];
    assert!(first["limits"]["max_binding_bytes"].as_u64().unwrap() >= 128 << 20);
    assert_eq!(first["variants"][0], "portable");
    let name = first["name"].as_str().unwrap().to_uppercase();

    // By name in any case, by index, and by the environment.
    assert_eq!(epl(&["devices", "--json", "--device", &name]).json()["chosen"], 0);
    assert_eq!(epl_with(&["devices", "--json"], &[("EPL_DEVICE", "0")]).json()["chosen"], 0);
    let text = epl(&["devices"]);
    assert!(text.stdout.contains("storage binding") && text.stdout.contains("(used)"), "{}", text.stdout);

    epl(&["devices", "--device", "no such adapter"]).fails_with(1, &["no such adapter", "epl devices"]);
    epl_with(&["ops", "test", "add"], &[("EPL_DEVICE", "no such adapter")])
        .fails_with(1, &["no such adapter"]);
}

#[test]
fn features_and_limits_can_be_left_alone() {
    // Cases that run: fewer without 16-bit floats.
    let runs = |arguments: &[&str], variables: &[(&str, &str)]| {
        epl_with(&[&["ops", "test", "add", "--json"], arguments].concat(), variables).json()["ops"][0]["runs"]
            .as_u64()
    };
    let webgpu = runs(&["--limits", "webgpu"], &[]);
    let half = &epl(&["devices", "--json"]).json()["adapters"][0]["features"]["shader_f16"];
    assert_eq!(webgpu < runs(&[], &[]), *half == true);
    assert_eq!(runs(&["--without", "subgroups,f16"], &[]), webgpu);
    assert_eq!(runs(&[], &[("EPL_WITHOUT", "f16")]), webgpu);
    assert_eq!(runs(&[], &[("EPL_LIMITS", "webgpu")]), webgpu);
    epl(&["devices", "--without", "f61"]).fails_with(2, &["f61", "subgroups, f16, matrices"]);
}

/// Variables with which the Vulkan loader finds no driver.
const NO_DRIVERS: [(&str, &str); 2] =
    [("VK_DRIVER_FILES", "/nonexistent.json"), ("VK_ICD_FILENAMES", "/nonexistent.json")];

#[test]
#[cfg(target_os = "linux")]
fn without_an_adapter_the_package_to_install_is_named() {
    for arguments in
        [&["devices"][..], &["devices", "--json"], &["ops", "test", "add"], &["ops", "perf", "add"]]
    {
        epl_with(arguments, &NO_DRIVERS).fails_with(1, &["no adapter", "mesa-vulkan-drivers"]);
    }
}

#[test]
fn a_configuration_that_is_wrong_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let path = path.to_str().unwrap();
    let run = |text: &str, more: &[&str]| {
        std::fs::write(path, text).unwrap();
        let ran = epl(&[&["plan", path][..], more].concat());
        let trained = epl(&[&["train", path][..], more].concat());
        assert_eq!((trained.code, &trained.stderr), (ran.code, &ran.stderr));
        ran
    };
    let good = "[data]\ntrain = 'faces'\n[train]\nout = 'run'\n";
    run(&format!("{good}[optim]\nlearning_rate = 1"), &[])
        .fails_with(2, &["optim.learning_rate", "`optim.lr`"]);
    run(&format!("{good}[model]\ninput = [112, 100]"), &[]).fails_with(2, &["model.input", "100", "16"]);
    run("[train]\nout = 'run'", &[]).fails_with(2, &["data.train"]);
    run("[train", &[]).fails_with(2, &["TOML"]);
    run(good, &["--set", "optim.lr"]).fails_with(2, &["KEY=VALUE"]);
    run(good, &["--set", "optim.momentun=0.5"]).fails_with(2, &["optim.momentun", "`optim.momentum`"]);
    run(good, &["--set", "optim.lr=fast"]).fails_with(2, &["optim.lr", "fast"]);

    let missing = folder.path().join("no.toml");
    epl(&["train", missing.to_str().unwrap()]).fails_with(1, &["no.toml"]);
    epl(&["plan", missing.to_str().unwrap()]).fails_with(1, &["no.toml"]);
    assert!(!Path::new("run").exists());
}

/// A folder with a small data set, a list of pairs and a configuration, which name each other from there.
fn work_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for identity in 0..3u8 {
        let place = folder.path().join(format!("faces/s{identity}"));
        std::fs::create_dir_all(&place).unwrap();
        for sample in 0..4u8 {
            let shade = |x: u32, y: u32| image::Rgb([80 * identity, 20 * sample, (x * 7 + y) as u8]);
            image::RgbImage::from_fn(16, 16, shade).save(place.join(format!("{sample}.png"))).unwrap();
        }
    }
    let pairs: String = (0..12)
        .map(|pair| {
            let (a, same) = (pair % 3, pair % 2);
            let b = if same == 1 { a } else { (a + 1) % 3 };
            format!("faces/s{a}/{}.png faces/s{b}/{}.png {same}\n", pair % 4, (pair + 1) % 4)
        })
        .collect();
    std::fs::write(folder.path().join("pairs.txt"), pairs).unwrap();
    let config = "[model]\narch = 'ir18'\ninput = [16, 16]\nwidth = 4\nembedding = 8\n[head.epl]\nstart_epoch = 2\n\
                  [data]\ntrain = 'faces'\n[train]\nout = 'run'\nepochs = 2\nbatch_size = 4\n";
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    folder
}

#[test]
fn a_network_is_planned_trained_evaluated_and_used() {
    let folder = work_folder();
    let epl = |arguments: &[&str]| epl_in(Some(folder.path()), arguments, &[]);
    let result = |arguments: &[&str]| {
        let ran = epl(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.json()
    };

    let plan = result(&["plan", "config.toml"]);
    assert!(plan["peak_bytes"].as_u64().unwrap() > 0 && plan["max_batch"].as_u64().unwrap() >= 4, "{plan}");
    for kind in ["weights", "optimizer", "prototypes", "activations", "workspace"] {
        assert!(plan["bytes"][kind].as_u64().is_some(), "{kind}");
    }

    // With the memory of this very batch, no larger one fits but for the step of the search.
    let memory = plan["peak_bytes"].to_string();
    let bounded = result(&["plan", "config.toml", "--memory", &memory]);
    assert!(bounded["max_batch"].as_u64().unwrap() < plan["max_batch"].as_u64().unwrap(), "{bounded}");
    assert_eq!(bounded["peak_bytes"], plan["peak_bytes"]);
    epl(&["plan", "config.toml", "--memory", "8GB"]).fails_with(2, &["--memory", "8GiB"]);

    // With --measure it also takes steps, and tells the time of the run: 6 steps, 3 of them with EPL.
    let timed = result(&["plan", "config.toml", "--measure", "2"]);
    let seconds = |key: &str| timed[key]["median"].as_f64().unwrap();
    assert_eq!((&timed["total_steps"], &timed["step"]["steps"]), (&Value::from(6), &Value::from(2)));
    let expected = 3.0 * (seconds("step") + seconds("step_with_epl"));
    assert!((timed["train_seconds"].as_f64().unwrap() - expected).abs() < 1e-9, "{timed}");
    let absent = [
        "plan",
        "config.toml",
        "--set",
        "data.train=absent",
        "--set",
        "data.num_classes=3",
        "--measure",
        "1",
    ];
    assert!(result(&absent)["total_steps"].is_null());
    assert_eq!(result(&[&absent[..], &["--images", "400"]].concat())["total_steps"], 200);

    let trained = result(&["train", "config.toml"]);
    assert_eq!((&trained["steps"], &trained["epochs"]), (&Value::from(6), &Value::from(2)));
    assert!(trained["loss"].as_f64().unwrap().is_finite());
    for file in ["config.toml", "metrics.jsonl", "model.safetensors", "report.html"] {
        assert!(folder.path().join("run").join(file).is_file(), "{file}");
    }
    epl(&["train", "config.toml"]).fails_with(2, &["already holds a finished run"]);
    result(&["train", "config.toml", "--set", "train.out=again"]);
    let weights = |run: &str| std::fs::read(folder.path().join(run).join("model.safetensors")).unwrap();
    assert!(weights("run") == weights("again"), "two runs of one configuration differ");

    let verified = result(&["eval", "verify", "--weights", "run/model.safetensors", "--pairs", "pairs.txt"]);
    assert_eq!(verified["sets"].as_array().unwrap().len(), 1);
    let set = &verified["sets"][0];
    assert_eq!((&set["name"], &set["pairs"]), (&Value::from("pairs"), &Value::from(12)));
    for rate in ["accuracy", "accuracy_std", "tar_at_far_1e-3", "auc", "eer"] {
        assert!((0.0..=1.0).contains(&set[rate].as_f64().unwrap()), "{rate}");
    }

    // The second time the embeddings are there, and the result is the same.
    let verify = ["eval", "verify", "--weights", "run/model.safetensors", "--pairs", "pairs.txt", "--json"];
    let again = epl(&verify);
    assert!(again.stderr.contains("pairs: the embeddings of 24 images are from"), "{}", again.stderr);
    assert_eq!(again.json(), verified);
    let afresh = epl(&[&verify[..], &["--no-cache"]].concat());
    assert!(!afresh.stderr.contains("are from"), "{}", afresh.stderr);
    assert_eq!(afresh.json(), verified);

    // All pairs of the folder, from its images and from a file of their embeddings.
    let pairs = ["eval", "all-pairs", "--weights", "run/model.safetensors", "--far", "0.1", "faces"];
    let pairs = result(&[&pairs[..], &["--report", "pairs.html"]].concat());
    assert_eq!((&pairs["set"], &pairs["images"]), (&Value::from("faces"), &Value::from(12)));
    assert_eq!((&pairs["genuine_pairs"], &pairs["impostor_pairs"]), (&Value::from(18), &Value::from(48)));
    result(&["embed", "--weights", "run/model.safetensors", "--out", "faces.safetensors", "faces"]);
    let same = result(&["eval", "all-pairs", "--embeddings", "faces.safetensors", "--far", "0.1"]);
    assert_eq!(same["tar_at_far"], pairs["tar_at_far"]);
    assert!(same["tar_at_far"][0]["tar"].is_number());
    result(&[&verify[..6], &["--report", "verify.html"]].concat());
    for page in ["pairs.html", "verify.html"] {
        let page = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(page.contains("<svg") && page.contains("run/model.safetensors"), "{page}");
    }

    let embed =
        ["embed", "--weights", "run/model.safetensors", "--out", "e.safetensors", "faces/s2/1.png", "faces"];
    assert_eq!(result(&embed)["images"], 13);
    let bytes = std::fs::read(folder.path().join("e.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = file.tensor("embeddings").unwrap();
    assert_eq!((embeddings.shape(), embeddings.dtype()), (&[13, 8][..], safetensors::Dtype::F32));
    // The image that is named first is also the tenth of the folder.
    let row = |index: usize| &embeddings.data()[index * 32..(index + 1) * 32];
    assert_eq!(row(0), row(10));
    assert_ne!(row(0), row(9));
    assert_eq!(file.tensor("labels").unwrap().shape(), [13]);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let paths: Vec<String> = serde_json::from_str(&header.metadata().as_ref().unwrap()["paths"]).unwrap();
    assert_eq!((paths.len(), paths[0].as_str()), (13, "faces/s2/1.png"));

    let weights = ["--weights", "run/model.safetensors"];
    let onnx = ["export", "onnx", "--out", "m.onnx"];
    let exported = result(&[&onnx[..], &weights, &["--flip", "--fold", "--f16"]].concat());
    let size = std::fs::metadata(folder.path().join("m.onnx")).unwrap().len();
    assert_eq!((&exported["bytes"], &exported["dimension"]), (&Value::from(size), &Value::from(8)));
    assert_eq!((&exported["arch"], &exported["input"]), (&Value::from("ir18"), &Value::from("input")));
    epl(&[&onnx[..], &["--weights", "pairs.txt"]].concat()).fails_with(1, &["pairs.txt", "safetensors"]);
    epl(&["export", "onnx", "--weights", "run/model.safetensors", "--out", "faces"])
        .fails_with(1, &["faces"]);
    // What is read is never written over, and what is beside it stays.
    let before = std::fs::read(folder.path().join("run/model.safetensors")).unwrap();
    std::fs::write(folder.path().join("m.partial"), "notes").unwrap();
    result(&[&onnx[..], &weights].concat());
    epl(&["export", "onnx", "--weights", "run/model.safetensors", "--out", "run/../run/model.safetensors"])
        .fails_with(2, &["is read and written"]);
    for onto in ["run/model.safetensors", "faces/s2/1.png"] {
        epl(&["embed", "--weights", "run/model.safetensors", "--out", onto, "faces/s2/1.png"])
            .fails_with(2, &["is read and written"]);
    }
    epl(&["convert", "m.partial", "m.safetensors"]).fails_with(1, &["m.partial"]);
    assert_eq!(std::fs::read(folder.path().join("m.partial")).unwrap(), b"notes");
    assert!(before == std::fs::read(folder.path().join("run/model.safetensors")).unwrap());
    epl(&[&onnx[..], &weights, &["--arch", "iresnet18"]].concat())
        .fails_with(1, &["run/model.safetensors", "layer1.0.conv2.weight"]);

    epl(&[&["embed", "--out", "x"][..], &weights, &["no.png"]].concat()).fails_with(1, &["no.png"]);
    epl(&[&["embed", "--out", "faces"][..], &weights, &["faces"]].concat()).fails_with(2, &["faces"]);
    epl(&[&["eval", "verify"][..], &weights, &["no.bin"]].concat()).fails_with(1, &["no.bin"]);
    epl(&["eval", "verify", "--weights", "config.toml", "--pairs", "pairs.txt"])
        .fails_with(1, &["config.toml", "safetensors"]);
}

#[test]
fn a_step_is_measured_whole_and_by_op() {
    let small = ["--batch", "2", "--classes", "10", "--steps", "2", "--set", "model.input=[32, 32]"];
    let more = ["bench", "--arch", "mobilefacenet", "--epl", "--json", "--set", "model.width=8"];
    let ran = epl(&[&more[..], &small].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = ran.json();
    let number = |value: &Value| value.as_f64().unwrap();
    let step = &found["step_ms"];
    assert!(0.0 < number(&step["min"]) && number(&step["min"]) <= number(&step["median"]));
    assert!(number(&step["median"]) <= number(&step["max"]));
    let images = 2000.0 / number(&step["median"]);
    assert!((number(&found["images_per_second"]) / images - 1.0).abs() < 1e-9);
    assert_eq!((&found["batch"], &found["epl"]), (&Value::from(2), &Value::from(true)));
    assert!(found["peak_bytes"].as_u64().unwrap() > 100_000);
    let kernels = found["kernels"].as_array().unwrap();
    let start = &found["start_seconds"];
    let first = number(&start["first_step"]);
    let parts: f64 = ["device", "data", "plan", "tune", "model", "session", "batch"]
        .map(|part| number(&start[part]))
        .iter()
        .sum();
    assert!((parts / first - 1.0).abs() < 0.05, "{start}");
    assert!(number(&start["first_result"]) > first && number(&start["pipelines_compiled"]) > 10.0, "{start}");
    for op in ["conv2d", "conv2d_grad_weight", "epl_update", "sgd"] {
        let kernel = kernels.iter().find(|kernel| kernel["name"] == op).unwrap();
        assert!(number(&kernel["ms"]) > 0.0 && number(&kernel["gbytes_per_s"]) > 0.0, "{kernel}");
    }
}

#[test]
fn kernels_are_kept_in_the_folder_that_is_named_and_measured_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("kernels");
    let bench = |more: &[&str]| {
        let small = ["bench", "--arch", "mobilefacenet", "--batch", "2", "--classes", "10", "--steps", "1"];
        let smaller =
            ["--set", "model.input=[32, 32]", "--set", "model.width=8", "--set", "train.autotune=on"];
        let ran = epl_in(Some(folder.path()), &[&small[..], &smaller[..], more, &["--json"]].concat(), &[]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran
    };
    let kept = |ending: &str| -> usize {
        let Ok(entries) = std::fs::read_dir(&kernels) else { return 0 };
        entries.filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().ends_with(ending)).count()
    };
    bench(&["--no-autotune"]);
    bench(&["--no-autotune", "--kernel-cache", "off"]);
    assert!(!kernels.exists() && !folder.path().join("off").exists());
    let vulkan = epl(&["devices", "--json"]).json()["adapters"][0]["backend"] == "Vulkan";
    let ran = bench(&["--no-autotune", "--kernel-cache", "kernels"]);
    assert_eq!((kept(".pipelines"), kept(".tuning.json")), (usize::from(vulkan), 0));
    assert!(!ran.stderr.contains("measured the kernels"), "{}", ran.stderr);
    let ran = bench(&["--kernel-cache", "kernels"]);
    assert_eq!(kept(".tuning.json"), 1);
    assert!(ran.stderr.contains("measured the kernels of"), "{}", ran.stderr);
    assert!(ran.json()["start_seconds"]["tune"].as_f64().unwrap() > 0.0);
}

#[test]
fn samples_that_disagree_with_their_class_are_named() {
    let folder = work_folder();
    let epl = |arguments: &[&str]| epl_in(Some(folder.path()), arguments, &[]);
    let text = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap();
    assert_eq!(epl(&["train", "config.toml"]).code, Some(0));
    let noise = ["data", "noise", "--weights", "run/model.safetensors"];
    let call = |more: &[&str]| epl(&[&noise[..], more].concat());

    let ran = call(&["--top", "5", "--out", "n/all.csv", "--report", "n/sheet.html", "--json", "faces"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = ran.json();
    assert_eq!((&found["images"], &found["classes"]), (&Value::from(12), &Value::from(3)));
    assert_eq!(found["prototypes"], "loss.queue");
    let suspects = found["suspects"].as_array().unwrap();
    assert_eq!(suspects.len(), 5);
    let cosine = |suspect: &Value| suspect["cosine"].as_f64().unwrap();
    assert!(suspects.is_sorted_by(|a, b| cosine(a) <= cosine(b)), "{suspects:?}");
    for suspect in suspects {
        let other = &suspect["other"];
        assert_ne!(other["class"], suspect["label"]);
        assert_eq!(suspect["nearer_to_other"], cosine(other) > cosine(suspect), "{suspect}");
        let image = Path::new(suspect["image"].as_str().unwrap()).to_path_buf();
        assert!(image.starts_with(format!("faces/s{}", suspect["label"])), "{suspect}");
    }

    // All samples, each once, and the first as they were named.
    let csv = text("n/all.csv");
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0], ["index", "image", "label", "cosine", "other", "other_cosine"]);
    let mut indices: Vec<usize> = rows[1..].iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(
        Value::from(indices[..5].to_vec()),
        suspects.iter().map(|s| s["index"].clone()).collect::<Value>()
    );
    let other = suspects[4]["other"]["class"].as_u64().unwrap();
    assert_eq!((rows[5][4].parse(), &rows[6][4..]), (Ok(other), &["", ""][..]), "{csv}");
    indices.sort_unstable();
    assert_eq!(indices, (0..12).collect::<Vec<_>>());

    let sheet = text("n/sheet.html");
    assert_eq!(sheet.matches("data:image/png;base64,").count(), 5 * 3, "each with two examples");
    let table = call(&["--top", "2", "--against", "mean", "faces"]);
    assert_eq!((table.code, table.stdout.lines().count()), (Some(0), 1 + 2 + 1), "{}", table.stdout);
    assert!(table.stdout.contains("2 of 12 images, compared with means of the features"), "{}", table.stdout);

    // A head without EPL: the class weights, said on standard error.
    let plain = std::fs::read_to_string(folder.path().join("config.toml")).unwrap();
    let plain = plain.replace("[head.epl]\nstart_epoch = 2\n", "").replace("'run'", "'plain'");
    std::fs::write(folder.path().join("plain.toml"), plain).unwrap();
    assert_eq!(epl(&["train", "plain.toml"]).code, Some(0));
    let of_plain = ["data", "noise", "--weights", "plain/model.safetensors", "--json", "faces"];
    let ran = epl(&of_plain);
    assert_eq!(ran.json()["prototypes"], "loss.weight", "{}", ran.stderr);
    assert_eq!(ran.json()["suspects"].as_array().unwrap().len(), 12, "there are no 50");
    assert!(ran.stderr.contains("no loss.queue") && ran.stderr.contains("loss.weight"), "{}", ran.stderr);
    epl(&[&of_plain[..], &["--against", "queue"]].concat()).fails_with(1, &["no tensor loss.queue"]);

    call(&["no-such-folder"]).fails_with(1, &["no-such-folder"]);
    call(&["--top", "0", "faces"]).fails_with(2, &["--top"]);
    call(&["--out", "faces", "faces"]).fails_with(1, &["faces"]);
    call(&["--num-classes", "4", "faces"]).fails_with(1, &["4 classes", "3"]);
    let added = folder.path().join("faces/s3");
    std::fs::create_dir(&added).unwrap();
    image::RgbImage::new(16, 16).save(added.join("0.png")).unwrap();
    call(&["faces"]).fails_with(1, &["4 classes", "expected 3", "hint: name the data"]);
    call(&["--num-classes", "3", "faces"]).fails_with(1, &["label 3", "below 3"]);
    std::fs::remove_dir_all(&added).unwrap();
    let odd = folder.path().join("faces/s2/9.png");
    image::RgbImage::new(20, 24).save(&odd).unwrap();
    call(&["faces"]).fails_with(1, &["9.png", "24 x 20", "16 x 16", "--resize"]);
    assert_eq!(call(&["--resize", "--json", "faces"]).json()["images"], 13);
}

#[test]
fn a_plan_needs_no_adapter() {
    let folder = work_folder();
    let ran = epl_in(Some(folder.path()), &["plan", "config.toml", "--json"], &NO_DRIVERS);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // Systems that have an adapter without a Vulkan driver name it.
    if ran.json()["device"].is_null() {
        assert!(ran.stderr.contains("there is no adapter"), "{}", ran.stderr);
    }
}

#[test]
fn a_reader_that_goes_away_does_no_harm() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_epl"))
        .args(["ops", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
