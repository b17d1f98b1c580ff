//! Which Linux distribution this is, and which of its packages bring what is needed.

/// The fields of `os-release` that say which distribution this is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `ID_LIKE`: the distributions that this one is derived from, closest first.
    pub like: Vec<String>,
    /// `PRETTY_NAME`, for messages.
    pub name: String,
}

impl OsRelease {
    /// The running system's; empty where there is no such file.
    pub fn read() -> Self {
        ["/etc/os-release", "/usr/lib/os-release"]
            .into_iter()
            .find_map(|path| std::fs::read_to_string(path).ok())
            .map_or_else(Self::default, |text| Self::parse(&text))
    }

    /// Parses the shell-like assignments described in os-release(5).
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let value = unquote(value);
            match key {
                "ID" => found.id = value,
                "ID_LIKE" => found.like = value.split_whitespace().map(str::to_owned).collect(),
                "PRETTY_NAME" => found.name = value,
                _ => {}
            }
        }
        found
    }
}

/// Removes single or double quotes, and the backslashes inside double ones.
fn unquote(value: &str) -> String {
    let inside = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    if let Some(literal) = inside('\'') {
        return literal.to_owned();
    }
    let Some(escaped) = inside('"') else { return value.to_owned() };
    let mut plain = String::with_capacity(escaped.len());
    let mut characters = escaped.chars();
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}

/// How a distribution installs something.
#[derive(Debug, PartialEq, Eq)]
pub struct Packages {
    /// The command in front of the packages, to be run as root.
    pub command: &'static [&'static str],
    /// The packages.
    pub names: &'static [&'static str],
    /// Whether the set-up runs the command itself; elsewhere it only names it.
    pub automatic: bool,
}

/// What may have to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The Vulkan loader and Mesa's software driver (lavapipe).
    VulkanDriver,
    /// A browser of the Chromium family.
    Browser,
    /// Python 3 with what makes virtual environments.
    Python,
}

const APT: &[&str] = &["apt-get", "install"];
const DNF: &[&str] = &["dnf", "install"];
const PACMAN: &[&str] = &["pacman", "-S"];
const APK: &[&str] = &["apk", "add"];

/// The packages of this distribution, or of the first known one that it derives from.
pub fn packages(os: &OsRelease, wanted: Wanted) -> Option<Packages> {
    let (command, driver, browser, python): (_, &[&str], &[&str], &[&str]) =
        std::iter::once(&os.id).chain(&os.like).find_map(|id| match id.as_str() {
            "debian" | "ubuntu" => Some((
                APT,
                &["libvulkan1", "mesa-vulkan-drivers"][..],
                &["chromium"][..],
                &["python3", "python3-venv"][..],
            )),
            "fedora" | "rhel" | "centos" => Some((
                DNF,
                &["vulkan-loader", "mesa-vulkan-drivers"][..],
                &["chromium"][..],
                &["python3"][..],
            )),
            "arch" => Some((
                PACMAN,
                &["vulkan-icd-loader", "vulkan-swrast"][..],
                &["chromium"][..],
                &["python"][..],
            )),
            "alpine" => {
                Some((APK, &["vulkan-loader", "mesa-vulkan-swrast"][..], &["chromium"][..], &["python3"][..]))
            }
            _ => None,
        })?;
    let names = match wanted {
        Wanted::VulkanDriver => driver,
        Wanted::Browser => browser,
        Wanted::Python => python,
    };
    Some(Packages { command, names, automatic: command == APT })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_ways_of_quoting_are_read() {
        let text =
            "# comment=1\nPRETTY_NAME=\"A \\\"quoted\\\" name\"\nID=ubuntu\nID_LIKE='debian gnu'\n\nODD\n";
        let expected = OsRelease {
            id: "ubuntu".to_owned(),
            like: vec!["debian".to_owned(), "gnu".to_owned()],
            name: "A \"quoted\" name".to_owned(),
        };
        assert_eq!(OsRelease::parse(text), expected);
    }

    fn choice(text: &str) -> Option<Packages> {
        packages(&OsRelease::parse(text), Wanted::VulkanDriver)
    }

    #[test]
    fn a_broken_file_gives_an_unknown_distribution() {
        assert_eq!(OsRelease::parse("ID=\"\nID_LIKE\n").id, "\"");
        assert_eq!(choice("ID=\"\nID_LIKE\n"), None);
        assert_eq!(packages(&OsRelease::default(), Wanted::Browser), None);
    }

    #[test]
    fn derived_distributions_use_the_packages_of_their_origin() {
        let command = |text: &str| choice(text).map(|packages| packages.command);
        assert_eq!(command("ID=debian"), Some(APT));
        assert_eq!(command("ID=linuxmint\nID_LIKE=\"ubuntu debian\""), Some(APT));
        assert_eq!(command("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\""), Some(DNF));
        assert_eq!(command("ID=manjaro\nID_LIKE=arch"), Some(PACMAN));
        assert_eq!(command("ID=alpine"), Some(APK));
        assert_eq!(command("ID=nixos"), None);
    }

    #[test]
    fn only_apt_is_run_without_asking() {
        let debian = packages(&OsRelease::parse("ID=debian"), Wanted::Browser).unwrap();
        assert_eq!(debian, Packages { command: APT, names: &["chromium"], automatic: true });
        assert!(!packages(&OsRelease::parse("ID=fedora"), Wanted::Browser).unwrap().automatic);
    }
}
