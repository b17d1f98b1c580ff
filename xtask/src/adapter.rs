//! Is there a GPU adapter that wgpu can reach? On Linux a software one can be installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::install::{install, instruction};
use crate::os_release::{OsRelease, Wanted, packages};
use crate::stage::say;

/// The library that wgpu loads for Vulkan.
const LOADER: &str = "libvulkan.so.1";

/// Makes sure that there is an adapter: a system's own one, or Mesa's software Vulkan driver.
///
/// # Errors
/// There is none and it cannot be installed from here; the message names the packages.
pub fn ensure() -> Result<()> {
    match std::env::consts::OS {
        "macos" => say("Metal is part of macOS"),
        "windows" => say("Direct3D 12 is part of Windows, with WARP where there is no GPU"),
        "linux" => return ensure_vulkan(),
        other => say(format_args!(
            "nothing is known about adapters on {other}; the first test that opens one will tell"
        )),
    }
    Ok(())
}

fn ensure_vulkan() -> Result<()> {
    let found = Vulkan::find();
    if let Some(description) = found.usable() {
        say(format_args!("{description}"));
        return Ok(());
    }
    say(format_args!("no Vulkan adapter: {}", found.missing()));
    if let Some(variable) = found.restricted_by {
        bail!(
            "{variable} is set and names no driver manifest that exists; Vulkan then looks nowhere else. \
             Correct or unset it"
        );
    }
    let os = OsRelease::read();
    let Some(packages) = packages(&os, Wanted::VulkanDriver) else {
        bail!(
            "install the Vulkan loader ({LOADER}) and a Vulkan driver: the one of your GPU, or Mesa's software \
             driver lavapipe. Their packages on this system ({}) are not known",
            if os.name.is_empty() { "without an os-release file" } else { &os.name }
        );
    };
    if !packages.automatic {
        bail!("install the driver of your GPU, or Mesa's software driver with `{}`", instruction(&packages));
    }
    install(&packages)?;
    match Vulkan::find() {
        found if found.usable().is_some() => Ok(()),
        found => bail!("{} is installed, and yet: {}", packages.names.join(" "), found.missing()),
    }
}

/// What there is of Vulkan on this machine.
struct Vulkan {
    loader: bool,
    /// The manifests of installed drivers.
    manifests: Vec<PathBuf>,
    /// The environment variable that replaces the search for manifests, if one is set.
    restricted_by: Option<&'static str>,
}

impl Vulkan {
    fn find() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let (places, restricted_by) = manifest_places(&variable);
        let manifests = places.iter().flat_map(|place| manifests_at(place)).collect();
        Self { loader: has_loader(&variable), manifests, restricted_by }
    }

    /// A line that names the drivers, if the loader and at least one driver are there.
    fn usable(&self) -> Option<String> {
        let names: Vec<_> = self.manifests.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
        (self.loader && !self.manifests.is_empty()).then(|| format!("Vulkan drivers: {}", names.join(", ")))
    }

    /// What is not there.
    fn missing(&self) -> String {
        let loader = (!self.loader).then(|| format!("the loader {LOADER} was not found"));
        let manifest =
            self.manifests.is_empty().then(|| "no driver manifest (vulkan/icd.d) was found".to_owned());
        loader.into_iter().chain(manifest).collect::<Vec<_>>().join("; ")
    }
}

/// Whether the dynamic linker would find the Vulkan loader.
fn has_loader(variable: &dyn Fn(&str) -> Option<OsString>) -> bool {
    // /sbin is not on the path of an ordinary user on Debian.
    let cached = ["ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"].into_iter().any(|program| {
        let output = Command::new(program).arg("-p").stdin(Stdio::null()).output();
        output.is_ok_and(|output| cache_lists_loader(&String::from_utf8_lossy(&output.stdout)))
    });
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/local/lib64"];
    let search_path = variable("LD_LIBRARY_PATH").unwrap_or_default();
    cached
        || system
            .into_iter()
            .flat_map(|folder| [PathBuf::from(folder), Path::new(folder).join(&multiarch)])
            .chain(std::env::split_paths(&search_path))
            .any(|folder| folder.join(LOADER).exists())
}

/// Whether the output of `ldconfig -p` lists the loader.
fn cache_lists_loader(output: &str) -> bool {
    output.lines().any(|line| line.split_whitespace().next() == Some(LOADER))
}

/// Files and folders where the Vulkan loader looks for driver manifests, in its order, and the
/// variable that replaces its own search, if set. See the loader's document on the driver interface.
fn manifest_places(variable: &dyn Fn(&str) -> Option<OsString>) -> (Vec<PathBuf>, Option<&'static str>) {
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if let Some(value) = variable(name) {
            return (std::env::split_paths(&value).collect(), Some(name));
        }
    }
    let home = |folder: &str| variable("HOME").map(|home| Path::new(&home).join(folder).into_os_string());
    let bases = [
        variable("XDG_CONFIG_HOME").or_else(|| home(".config")),
        variable("XDG_CONFIG_DIRS").or_else(|| Some("/etc/xdg".into())),
        Some("/usr/local/etc:/etc".into()),
        variable("XDG_DATA_HOME").or_else(|| home(".local/share")),
        variable("XDG_DATA_DIRS"),
        Some("/usr/local/share:/usr/share".into()),
    ];
    let added = variable("VK_ADD_DRIVER_FILES").unwrap_or_default();
    let mut places: Vec<PathBuf> =
        std::env::split_paths(&added).filter(|path| !path.as_os_str().is_empty()).collect();
    for base in bases.iter().flatten().flat_map(|base| std::env::split_paths(base).collect::<Vec<_>>()) {
        let place = base.join("vulkan").join("icd.d");
        if !places.contains(&place) {
            places.push(place);
        }
    }
    (places, None)
}

/// The manifests at a place: the file itself, or every `.json` in the folder, sorted.
fn manifests_at(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_path_buf()];
    }
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let mut manifests: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json") && path.is_file())
        .collect();
    manifests.sort();
    manifests
}

#[cfg(test)]
mod tests {
    use super::*;

    // `:` separates the entries of a list of paths on Unix only, and these lists are read on Linux only.
    #[cfg(unix)]
    fn places(variables: &[(&str, &str)]) -> (Vec<PathBuf>, Option<&'static str>) {
        manifest_places(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_linker_cache_is_matched_by_the_whole_name() {
        let cache = |name: &str| format!("2 libs found\n\t{name} (libc6,x86-64) => /usr/lib/{name}\n");
        assert!(cache_lists_loader(&cache("libvulkan.so.1")));
        assert!(!cache_lists_loader(&cache("libvulkan_lvp.so")));
        assert!(!cache_lists_loader(&cache("libvulkan.so.12")));
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_replaces_the_search_for_manifests() {
        let variables = [("VK_ICD_FILENAMES", "/c.json"), ("VK_DRIVER_FILES", "/a.json:/b")];
        assert_eq!(places(&variables), (vec!["/a.json".into(), "/b".into()], Some("VK_DRIVER_FILES")));
        assert_eq!(places(&variables[..1]), (vec!["/c.json".into()], Some("VK_ICD_FILENAMES")));
    }

    #[cfg(unix)]
    #[test]
    fn manifests_are_looked_for_where_the_loader_does() {
        let (found, restricted_by) = places(&[("HOME", "/h"), ("XDG_DATA_DIRS", "/x:/usr/share")]);
        let expected = ["/h/.config", "/etc/xdg", "/usr/local/etc", "/etc", "/h/.local/share", "/x"]
            .into_iter()
            .chain(["/usr/share", "/usr/local/share"])
            .map(|base| Path::new(base).join("vulkan/icd.d"))
            .collect::<Vec<_>>();
        assert_eq!((found, restricted_by), (expected, None));
    }

    #[test]
    fn a_folder_counts_only_with_a_manifest_in_it() {
        let folder = std::env::temp_dir().join(format!("epl-xtask-icd-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("README"), "").unwrap();
        assert!(manifests_at(&folder).is_empty());
        let manifest = folder.join("lvp_icd.json");
        std::fs::write(&manifest, "{}").unwrap();
        let expected = vec![manifest];
        assert_eq!(manifests_at(&folder), expected);
        assert_eq!(manifests_at(&expected[0]), expected);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(manifests_at(&folder).is_empty());
    }

    #[test]
    fn both_loader_and_driver_are_needed() {
        let vulkan = |loader, manifests: &[&str]| Vulkan {
            loader,
            manifests: manifests.iter().map(PathBuf::from).collect(),
            restricted_by: None,
        };
        let driver = ["/usr/share/vulkan/icd.d/lvp_icd.x86_64.json"];
        assert_eq!(vulkan(true, &driver).usable().unwrap(), "Vulkan drivers: lvp_icd.x86_64");
        assert!(vulkan(true, &[]).usable().is_none());
        assert!(vulkan(false, &driver).usable().is_none());
        assert!(vulkan(false, &[]).missing().contains("loader"));
        assert!(!vulkan(true, &[]).missing().contains("loader"));
    }

    #[test]
    fn the_instruction_is_a_command() {
        let os = OsRelease::parse("ID=fedora");
        let text = instruction(&packages(&os, Wanted::VulkanDriver).unwrap());
        assert!(text.contains("sudo dnf install vulkan-loader mesa-vulkan-drivers"), "{text}");
    }
}
