//! The compilers: where they are, and how those come that can come by themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::asking::Tool;
use crate::install::{install, instruction};
use crate::os_release::{OsRelease, Wanted, packages};
use crate::stage::{build, cargo, run, say};

/// The source package that holds DXC as a library for Linux, macOS and Windows, and its SHA-256.
const DXC_PACKAGE: &str = "compushady==0.17.5";
const DXC_HASH: &str = "5052caf9e955d8e7a48e22f536e82b44b72e83af46e824a9e99157c7809de691";

/// GPUs of AMD that the driver compiles for without one, by the names that it has had for them: the last with waves of 64 alone,
/// and one with waves of 32.
pub const FAMILIES: [(&str, &[&str]); 2] = [("vega", &["vega10"]), ("rdna3", &["navi31", "gfx1100"])];

/// The program with the tools that are libraries.
///
/// # Errors
/// It cannot be built.
pub fn driver(root: &Path) -> Result<PathBuf> {
    let folder = root.join("tests").join("gate");
    let target = folder.join("target");
    // What it is linked from are a few hundred files of C++: they are not built again for another target folder.
    let target = target.to_string_lossy();
    let arguments = ["--locked", "--target-dir", &target];
    // It is no part of the workspace, whose tests leave it out.
    run(cargo(&folder).args(["test", "--quiet"]).args(arguments))
        .context("the gate's own program fails its tests")?;
    build(&folder, "epl-gate", &arguments)
}

/// SPIRV-Tools.
pub fn spirv_val(driver: &Path) -> Tool {
    server(driver, &["spirv-val"], &[])
}

/// DXC: the library at `path`, or the one that is downloaded into `folder`.
///
/// # Errors
/// It is not there, and cannot be downloaded.
pub fn dxc(driver: &Path, path: Option<&Path>, folder: &Path) -> Result<Tool> {
    let (library, name) = match path {
        Some(path) => (path.to_owned(), format!("DXC, {}", path.display())),
        None => (download_dxc(folder)?, format!("DXC of {DXC_PACKAGE}")),
    };
    if !library.is_file() {
        bail!("there is no DXC library {}", library.display());
    }
    Ok(server(driver, &["dxc", &library.to_string_lossy(), &name], &[]))
}

/// The library's name in the package; `None` where it has none for this system.
fn dxc_name() -> Option<String> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("windows", "x86_64") => Some("dxcompiler.dll".into()),
        ("macos", _) => Some("libdxcompiler.3.7.dylib".into()),
        ("linux", arch @ ("x86_64" | "aarch64")) => Some(format!("libdxcompiler_{arch}.so.3.7")),
        _ => None,
    }
}

fn download_dxc(folder: &Path) -> Result<PathBuf> {
    let name = dxc_name().context(
        "no DXC is known for this system: name the library of another with --dxc, or leave it out with --without dxc",
    )?;
    let package = DXC_PACKAGE.replace("==", "-");
    let library = folder.join(&package).join("compushady").join("backends").join(name);
    if library.is_file() {
        return Ok(library);
    }
    std::fs::create_dir_all(folder)?;
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, format!("{DXC_PACKAGE} --hash=sha256:{DXC_HASH}\n"))?;
    let downloaded = run(Command::new(python()?)
        .args(["-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps", "--dest"])
        .arg(folder)
        .arg("--requirement")
        .arg(&requirements));
    downloaded.context(
        "DXC comes from PyPI's source package of compushady; name a library of your own with --dxc, or leave it out with \
         --without dxc",
    )?;
    let archive = folder.join(format!("{package}.tar.gz"));
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder))?;
    Ok(library)
}

fn python() -> Result<&'static str> {
    let works = |name: &&str| {
        let output = Command::new(name).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    ["python3", "python"].into_iter().find(works).context(
        "no Python with pip, which downloads DXC: install it, name a library with --dxc, or leave it out with --without dxc",
    )
}

/// Apple's compiler of Metal.
///
/// # Errors
/// Xcode is not there, or has not got it.
pub fn metal() -> Result<Tool> {
    let found = Command::new("xcrun")
        // Found is not enough: from Xcode 26 on there is a program that only says what is to be downloaded.
        .args(["-sdk", "macosx", "metal", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        bail!(
            "there is no `xcrun metal`: install Xcode (from version 26 on also `xcodebuild -downloadComponent MetalToolchain`), \
             or leave it out with --without metal"
        );
    }
    Ok(Tool::Once { program: "xcrun".into() })
}

/// Tint: the program at `path`, or the one that is found like any other.
///
/// # Errors
/// There is none.
pub fn tint(path: Option<&Path>) -> Result<Tool> {
    let program = path.map_or_else(|| PathBuf::from("tint"), Path::to_owned);
    let output = Command::new(&program).arg("--help").stdin(Stdio::null()).output();
    if output.is_err() {
        bail!(
            "there is no `{}`: build it from https://dawn.googlesource.com/dawn (`cmake -B out -DTINT_BUILD_CMD_TOOLS=ON && cmake \
             --build out --target tint_cmd_tint_cmd`) and put it on the path or name it with --tint, or leave it out with \
             --without tint",
            program.display()
        );
    }
    Ok(Tool::Once { program })
}

/// Mesa's driver for AMD, as if a GPU of a family were there, and whether it has cooperative matrices then.
///
/// # Errors
/// The driver is not there and cannot be installed, or knows none of the names of the family.
pub fn radv(driver: &Path, manifest: Option<&Path>, families: &[&str]) -> Result<(Tool, bool)> {
    let manifest = match manifest {
        Some(manifest) => manifest.to_owned(),
        None => find_radv()?,
    };
    let manifest = manifest.to_string_lossy();
    for family in families {
        // The names before and after Mesa 25.2, and before and after the loader's 1.3.207.
        let environment = [
            ("RADV_FORCE_FAMILY", *family),
            ("AMD_FORCE_FAMILY", family),
            ("VK_ICD_FILENAMES", &manifest),
            ("VK_DRIVER_FILES", &manifest),
            // Its own cache would answer instead of the compiler.
            ("MESA_SHADER_CACHE_DISABLE", "true"),
        ];
        // Nothing is asked: it only says what it is, or dies of a name that it does not know.
        let mut command = Command::new(driver);
        command.arg("pipelines").envs(environment).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().with_context(|| format!("cannot start {}", driver.display()))?;
        if output.status.success() {
            let matrices = String::from_utf8_lossy(&output.stdout).contains("with matrices");
            return Ok((server(driver, &["pipelines"], &environment), matrices));
        }
    }
    bail!(
        "the driver of {manifest} does not compile for {}; `{} pipelines` with RADV_FORCE_FAMILY and VK_DRIVER_FILES says why, \
         and --without radv leaves it out",
        families.join(" or "),
        driver.display()
    )
}

fn find_radv() -> Result<PathBuf> {
    let manifest = || {
        let folders =
            ["/usr/share", "/usr/local/share", "/etc"].map(|place| Path::new(place).join("vulkan/icd.d"));
        let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
        let is_radv = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("radeon_icd") && name.ends_with(".json") && !name.contains("i686")
        };
        files.map(|file| file.path()).find(is_radv)
    };
    if let Some(found) = manifest() {
        return Ok(found);
    }
    match packages(&OsRelease::read(), Wanted::VulkanDriver) {
        Some(packages) if packages.automatic => install(&packages)?,
        Some(packages) => say(format_args!("`{}` may bring it", instruction(&packages))),
        None => {}
    }
    manifest().context(
        "Mesa's Vulkan driver for AMD (radeon_icd) is not there: install it, name its manifest with --radv, or leave it out \
         with --without radv",
    )
}

fn server(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Tool {
    Tool::Server {
        program: program.to_owned(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        environment: environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
    }
}
