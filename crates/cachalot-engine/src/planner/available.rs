//! How much memory this process can still take: what the system says it has, and what its control groups leave.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Memory that can be taken without pushing anything out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// Who says so: `the system`, or the control group whose limit is nearer.
    pub by: String,
}

impl Available {
    /// Asks the system. `None` where it does not say (only Linux does).
    pub fn now() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    /// As [`Available::now`], of the files below `root`.
    fn below(root: &Path) -> Option<Self> {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let system = Self { bytes: kilobytes(&meminfo, "MemAvailable:")?, by: "the system".to_owned() };
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let groups = groups.lines().filter_map(|line| group(root, line)).flatten();
        groups.chain([system]).min_by_key(|available| available.bytes)
    }
}

/// The value of `name` in a file of `name   value kB` lines, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the memory limits of one line of `/proc/self/cgroup` leave, in the group itself and all around it.
fn group(root: &Path, line: &str) -> Option<Vec<Available>> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, files) = match controllers {
        "" => ("sys/fs/cgroup", ["memory.max", "memory.current"]),
        list if list.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes"])
        }
        _ => return None,
    };
    // Inside a container the path is often that of the host: the mount itself is the group then.
    let paths: Vec<PathBuf> = Path::new(path.trim_start_matches('/')).ancestors().map(Path::to_path_buf).collect();
    let mount = root.join(mount);
    Some(paths.iter().filter_map(|path| left(&mount.join(path), path, files)).collect())
}

/// Limit less use of one group; pages of files count as free, since they go when others want them.
fn left(directory: &Path, path: &Path, [limit, usage]: [&str; 2]) -> Option<Available> {
    let number = |file: &str| fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(limit)?, number(usage)?);
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let entry = |name: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse::<u64>().ok())
    };
    // Of a group with others inside, the first version tells its own pages apart from those of all: the use is of all.
    let pages = |name: &str| entry(&format!("total_{name}")).or_else(|| entry(name)).unwrap_or(0);
    let files = pages("inactive_file").saturating_add(pages("active_file"));
    let used = usage.saturating_sub(files);
    Some(Available { bytes: limit.saturating_sub(used), by: format!("control group /{}", path.display()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n");

    /// Files, what they leave, and who says so.
    type Case = (&'static [(&'static str, &'static str)], u64, &'static str);

    #[test]
    fn the_nearest_limit_counts() {
        let cases: [Case; 6] = [
            (&[MEMINFO], 3_072_000, "the system"),
            (
                &[
                    MEMINFO,
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                    ("sys/fs/cgroup/a/b/memory.current", "10\n"),
                    ("sys/fs/cgroup/a/memory.max", "2000000\n"),
                    ("sys/fs/cgroup/a/memory.current", "500000\n"),
                    ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 300000\nactive_file 100000\n"),
                ],
                1_900_000,
                "control group /a",
            ),
            (
                &[
                    MEMINFO,
                    ("proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n"),
                    ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n"),
                    ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "5000\n"),
                ],
                0,
                "control group /x",
            ),
            // The first version, where most pages of files are those of groups inside.
            (
                &[
                    MEMINFO,
                    ("proc/self/cgroup", "4:memory:/x\n"),
                    ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "100000\n"),
                    ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "90000\n"),
                    (
                        "sys/fs/cgroup/memory/x/memory.stat",
                        "inactive_file 1\nactive_file 2\ntotal_inactive_file 40000\ntotal_active_file 20000\n",
                    ),
                ],
                70_000,
                "control group /x",
            ),
            // A container: the path of the host does not exist inside, the mount is the group.
            (
                &[
                    MEMINFO,
                    ("proc/self/cgroup", "0::/host/path\n"),
                    ("sys/fs/cgroup/memory.max", "70000\n"),
                    ("sys/fs/cgroup/memory.current", "20000\n"),
                ],
                50_000,
                "control group /",
            ),
            (&[MEMINFO, ("proc/self/cgroup", "nonsense\n::\n")], 3_072_000, "the system"),
        ];
        for (files, bytes, by) in cases {
            let root = tree(files);
            let found = Available::below(root.path());
            assert_eq!(found, Some(Available { bytes, by: by.to_owned() }), "{files:?}");
        }
        assert_eq!(Available::below(tree(&[("proc/meminfo", "MemTotal: 1 kB\n")]).path()), None);
    }
}
