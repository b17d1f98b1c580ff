//! What a PyTorch file may name and make.
//!
//! Whatever a file names, nothing is imported and nothing is called. So any class may be named: a whole module is pickled
//! as objects of the classes that it is made of, each with a dict for its state, and such an object is data. What a file
//! asks to be *called* is another matter: here are the functions that PyTorch, NumPy and Python themselves write into
//! files of weights, and a file that asks for any other is refused. Functions that only an attack has a use for are
//! refused wherever they are named.

use std::cell::Cell;

use crate::pickle::{Making, Policy, Refusal, qualified};

/// The policy for files of weights.
#[derive(Debug, Default)]
pub struct Weights {
    /// Whether something was refused because it runs something, rather than because the pickle is broken.
    refused: Cell<Option<Reason>>,
}

/// Why the policy refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The file names what only an attack has a use for.
    Dangerous,
    /// The file asks for a call that weights do not need.
    Unknown,
}

impl Weights {
    /// Why this policy refused something, if it did.
    pub fn reason(&self) -> Option<Reason> {
        self.refused.get()
    }
}

impl Policy for Weights {
    fn import(&self, module: &str, name: &str) -> Result<(), Refusal> {
        if !is_dangerous(module, name) {
            return Ok(());
        }
        self.refused.set(Some(Reason::Dangerous));
        let found = format!("{}, with which the file tries to run something", qualified(module, name));
        Err((found, "tensors and plain values"))
    }

    fn make(&self, making: Making, module: &str, name: &str) -> Result<(), Refusal> {
        if making == Making::New || may_be_called(module, name) {
            return Ok(());
        }
        self.refused.set(Some(Reason::Unknown));
        Err((
            format!("a call of {}", qualified(module, name)),
            "calls of what puts tensors together, and no others",
        ))
    }
}

/// Modules in which everything runs, loads or reaches something.
const DANGEROUS_MODULES: &[&str] = &[
    "_frozen_importlib",
    "_frozen_importlib_external",
    "_io",
    "_osx_support",
    "_pickle",
    "_posixsubprocess",
    "_socket",
    "_winapi",
    "bdb",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "doctest",
    "ftplib",
    "gc",
    "httplib",
    "imp",
    "inspect",
    "io",
    "linecache",
    "marshal",
    "nt",
    "ntpath",
    "pdb",
    "pickle",
    "pkgutil",
    "platform",
    "popen2",
    "posix",
    "posixpath",
    "profile",
    "pty",
    "pydoc",
    "runpy",
    "shutil",
    "signal",
    "site",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "timeit",
    "trace",
    "urllib2",
    "webbrowser",
    "zipimport",
];

/// Packages of which that is true with all that is in them.
const DANGEROUS_PACKAGES: &[&str] = &[
    "_pyrepl",
    "aiohttp",
    "asyncio",
    "cloudpickle",
    "concurrent",
    "ctypes",
    "dill",
    "distutils",
    "ensurepip",
    "http",
    "idlelib",
    "importlib",
    "joblib",
    "lib2to3",
    "multiprocessing",
    "os",
    "pip",
    "pkg_resources",
    "requests",
    "setuptools",
    "torch._inductor",
    "torch.hub",
    "torch.jit",
    "torch.package",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
    "urllib",
    "venv",
    "xmlrpc",
];

/// Of `builtins`, what is no class of plain data and no error.
const DANGEROUS_BUILTINS: &[&str] = &[
    "__build_class__",
    "__import__",
    "apply",
    "breakpoint",
    "compile",
    "delattr",
    "dir",
    "eval",
    "exec",
    "execfile",
    "exit",
    "file",
    "filter",
    "getattr",
    "globals",
    "hasattr",
    "help",
    "input",
    "iter",
    "locals",
    "map",
    "memoryview",
    "next",
    "open",
    "print",
    "quit",
    "raw_input",
    "reduce",
    "reload",
    "setattr",
    "vars",
];

/// Single functions of modules that also have classes of data.
const DANGEROUS_NAMES: &[(&str, &str)] = &[
    ("functools", "reduce"),
    ("numpy", "fromfile"),
    ("numpy", "load"),
    ("numpy", "loadtxt"),
    ("numpy", "memmap"),
    ("numpy.testing._private.utils", "runstring"),
    ("operator", "attrgetter"),
    ("operator", "itemgetter"),
    ("operator", "methodcaller"),
    ("_operator", "attrgetter"),
    ("_operator", "itemgetter"),
    ("_operator", "methodcaller"),
    ("torch", "compile"),
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
    ("types", "MethodType"),
    ("types", "ModuleType"),
];

fn within(module: &str, package: &str) -> bool {
    module.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn is_dangerous(module: &str, name: &str) -> bool {
    // A module can be reached through another one that has imported it: `os.system` in `mine`.
    let through = |part: &str| ["os", "posix", "nt", "subprocess", "sys", "builtins"].contains(&part);
    if DANGEROUS_MODULES.binary_search(&module).is_ok()
        || DANGEROUS_PACKAGES.iter().any(|package| within(module, package))
        || name.split('.').rev().skip(1).any(through)
    {
        return true;
    }
    if matches!(module, "builtins" | "__builtin__" | "__builtins__") {
        return DANGEROUS_BUILTINS.binary_search(&name).is_ok() || name.contains('.');
    }
    // The very words, in whatever module they are.
    matches!(name, "eval" | "exec" | "system" | "popen" | "__import__")
        || DANGEROUS_NAMES.contains(&(module, name))
}

/// The functions that a file of weights may ask for, each with its module. What they would make is worked out by this
/// program for tensors, and never looked at for everything else.
fn may_be_called(module: &str, name: &str) -> bool {
    match module {
        "torch._utils" => {
            name.starts_with("_rebuild_")
                && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        }
        "torch._tensor" => name == "_rebuild_from_type_v2",
        "torch" => matches!(name, "Size" | "device" | "Generator"),
        "torch.serialization" => name == "_get_layout",
        "torch.nn.parameter" => matches!(name, "Parameter" | "Buffer"),
        "collections" => matches!(name, "OrderedDict" | "defaultdict" | "Counter" | "deque"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => matches!(name, "_reconstruct" | "scalar"),
        "numpy" => matches!(name, "dtype" | "ndarray"),
        "numpy.random._pickle" => {
            matches!(name, "__randomstate_ctor" | "__bit_generator_ctor" | "__generator_ctor")
        }
        "_codecs" => name == "encode",
        "copy_reg" | "copyreg" => matches!(name, "_reconstructor" | "__newobj__"),
        "builtins" | "__builtin__" => matches!(
            name,
            "set"
                | "frozenset"
                | "list"
                | "dict"
                | "tuple"
                | "slice"
                | "range"
                | "xrange"
                | "complex"
                | "bytearray"
                | "bytes"
                | "object"
        ),
        // A function with some of its arguments, as layers keep it; what it would call is checked where it is named.
        "functools" => name == "partial",
        // A name, and nothing else.
        "logging" => name == "getLogger",
        "types" => name == "SimpleNamespace",
        "datetime" => matches!(name, "datetime" | "timedelta" | "date" | "timezone"),
        "pathlib" | "pathlib._local" => {
            matches!(
                name,
                "Path" | "PosixPath" | "WindowsPath" | "PurePath" | "PurePosixPath" | "PureWindowsPath"
            )
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sorted() {
        assert!(DANGEROUS_MODULES.is_sorted());
        assert!(DANGEROUS_BUILTINS.is_sorted());
    }

    #[test]
    fn what_runs_something_is_not_named() {
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("nt", "system"),
            ("os.path", "join"),
            ("subprocess", "Popen"),
            ("builtins", "eval"),
            ("__builtin__", "exec"),
            ("builtins", "getattr"),
            ("builtins", "__import__"),
            ("builtins", "str.join"),
            ("runpy", "_run_code"),
            ("pty", "spawn"),
            ("webbrowser", "open"),
            ("socket", "socket"),
            ("shutil", "rmtree"),
            ("importlib", "import_module"),
            ("importlib.util", "spec_from_file_location"),
            ("torch.hub", "load"),
            ("torch", "load"),
            ("torch.serialization", "os.system"),
            ("torch.storage", "_load_from_bytes"),
            ("numpy.f2py.crackfortran", "eval"),
            ("mine", "os.system"),
        ] {
            let policy = Weights::default();
            let (found, _) = policy.import(module, name).unwrap_err();
            assert!(found.contains(name) && found.contains("tries to run"), "{found}");
            assert_eq!(policy.reason(), Some(Reason::Dangerous));
        }
    }

    #[test]
    fn classes_are_data_and_calls_are_listed() {
        let policy = Weights::default();
        for (module, name) in [
            ("backbones.iresnet", "IResNet"),
            ("torch.nn.modules.conv", "Conv2d"),
            ("argparse", "Namespace"),
            ("torch", "float32"),
            ("os_helpers", "Settings"),
            ("code.models", "Net"),
        ] {
            policy.import(module, name).unwrap();
            policy.make(Making::New, module, name).unwrap();
            assert_eq!(policy.reason(), None);
            assert!(Weights::default().make(Making::Call, module, name).is_err(), "{module}.{name}");
        }
        for (module, name) in [
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
            ("__builtin__", "set"),
            ("numpy._core.multiarray", "scalar"),
        ] {
            policy.import(module, name).unwrap();
            policy.make(Making::Call, module, name).unwrap();
        }
        assert!(policy.make(Making::Call, "torch._utils", "_rebuild.__globals__").is_err());
        assert_eq!(policy.reason(), Some(Reason::Unknown));
    }
}
