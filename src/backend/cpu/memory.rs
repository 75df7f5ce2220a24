//! How much memory this process can still have: what the system has free, and what its control groups leave it.

use std::fs;
use std::path::Path;

/// Bytes that this process can still allocate without swapping or being ended for it; `None` off Linux.
pub fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The total and the available memory of the machine, in bytes; `None` off Linux.
pub fn of_machine() -> [Option<u64>; 2] {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    ["MemTotal:", "MemAvailable:"].map(|field| of_meminfo(&text, field))
}

fn of_meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// As [`available`], of the system whose files stand under `root`.
fn available_under(root: &Path) -> Option<u64> {
    let free = of_meminfo(&fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    Some(groups.lines().filter_map(|line| left_by(root, line)).fold(free, u64::min))
}

/// What a line of /proc/self/cgroup leaves: the least over the group and all groups that hold it. A container often
/// sees its own group as the root, whatever the line says.
fn left_by(root: &Path, line: &str) -> Option<u64> {
    let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
    let (mount, limit, usage, cache) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max", "memory.current", ["inactive_file", "active_file"]),
        list if list.split(',').any(|name| name == "memory") => {
            let cache = ["total_inactive_file", "total_active_file"];
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", cache)
        }
        _ => return None,
    };
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |group: &Path| {
        let group = root.join(mount).join(group);
        let (limit, usage) = (number(&group.join(limit))?, number(&group.join(usage))?);
        // Pages of files that can be dropped are counted as used, and are not in the way.
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let field = |line: &str| {
            let (name, bytes) = line.split_once(' ')?;
            if cache.contains(&name) { bytes.trim().parse::<u64>().ok() } else { None }
        };
        let droppable = stat.lines().filter_map(field).sum();
        Some(limit.saturating_sub(usage.saturating_sub(droppable)))
    };
    Path::new(group.trim_start_matches('/')).ancestors().filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like the root of a system.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("written");
        }
        root
    }

    #[test]
    fn the_tightest_limit_counts() {
        const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n");
        const V2: (&str, &str) = ("proc/self/cgroup", "0::/a/b\n");
        const V1: (&str, &str) = ("proc/self/cgroup", "5:cpu,cpuacct:/c\n4:memory:/c\n");
        let v2 = |group: &'static str| {
            [format!("sys/fs/cgroup{group}/memory.max"), format!("sys/fs/cgroup{group}/memory.current")]
        };
        let [[own_max, own_use], [outer_max, outer_use], [root_max, root_use]] = ["/a/b", "/a", ""].map(v2);
        let (v1_max, v1_use) =
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes");
        /// Paths and texts.
        type Files<'a> = &'a [(&'a str, &'a str)];
        let table: &[(Files, Option<u64>)] = &[
            (&[], None),
            (&[MEMINFO], Some(1_024_000)),
            (&[MEMINFO, V2], Some(1_024_000)),
            (&[MEMINFO, V2, (&own_max, "max\n"), (&own_use, "5000\n")], Some(1_024_000)),
            (&[MEMINFO, V2, (&own_max, "9000\n"), (&own_use, "5000\n")], Some(4_000)),
            (&[MEMINFO, V2, (&outer_max, "9000\n"), (&outer_use, "7000\n"), (&own_max, "max\n")], Some(2_000)),
            (&[MEMINFO, V2, (&root_max, "9000\n"), (&root_use, "9500\n")], Some(0)),
            (
                &[
                    MEMINFO,
                    V2,
                    (&root_max, "9000\n"),
                    (&root_use, "8000\n"),
                    ("sys/fs/cgroup/memory.stat", "file 7000\nactive_file 500\ninactive_file 3000\n"),
                ],
                Some(4_500),
            ),
            (&[MEMINFO, V1, (v1_max, "9000\n"), (v1_use, "2000\n")], Some(7_000)),
            (&[MEMINFO, V1, (v1_max, "9223372036854771712\n"), (v1_use, "2000\n")], Some(1_024_000)),
            // A nested group: its own stat, of which the totals count what stands below it too.
            (
                &[
                    MEMINFO,
                    V1,
                    (v1_max, "9000\n"),
                    (v1_use, "2000\n"),
                    ("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "8000\n"),
                    ("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "7500\n"),
                    (
                        "sys/fs/cgroup/memory/c/memory.stat",
                        "inactive_file 1\nactive_file 2\ntotal_inactive_file 1000\ntotal_active_file 300\n",
                    ),
                ],
                Some(1_800),
            ),
        ];
        for (files, expected) in table {
            assert_eq!(available_under(system(files).path()), *expected, "{files:?}");
        }
    }
}
