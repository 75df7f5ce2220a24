//! The headers of kernels, as they stand in their files, against the table that Rust has of them.

use crate::build::{Header, headers_of};
use proxytune::backend::cuda::kernels::{Kernel, MODULES, Module};
use std::collections::BTreeSet;

#[test]
fn headers_are_read_as_they_are_written() {
    let text = "// A kernel.\nextern \"C\" __global__ void __launch_bounds__(THREADS, 2)\n    \
                go_bf16(const GoArgs args) {\n}\n";
    let header = Header { name: "go_bf16".into(), args: "GoArgs".into(), threads: "THREADS".into() };
    assert_eq!(headers_of(text), [header]);
}

#[test]
fn the_table_names_every_kernel_of_every_file_and_no_other() {
    for module in &MODULES {
        let Module { stem, kernels, .. } = module;
        let headers = headers_of(&module.source());
        // Of which the source asserts that it is the table's.
        assert!(headers.iter().all(|header| header.threads == "THREADS"), "{stem}: a block of other threads");
        let written: BTreeSet<(String, String)> =
            headers.into_iter().map(|header| (header.name, header.args)).collect();
        let listed: BTreeSet<_> =
            kernels.iter().map(|kernel| (kernel.name.to_owned(), kernel.args.to_owned())).collect();
        assert_eq!(written, listed, "kernels/{stem}.cu and the table");
        assert_eq!(listed.len(), kernels.len(), "{stem}: a kernel stands twice in the table");
        assert!(kernels.iter().all(|kernel| kernel.stem == *stem), "{stem}: a kernel of another module");
        assert!(!kernels.is_empty(), "{stem} has no kernel");
    }
    let all: Vec<&Kernel> = MODULES.iter().flat_map(|module| module.kernels).collect();
    let names: BTreeSet<&str> = all.iter().map(|kernel| kernel.name).collect();
    assert_eq!(names.len(), all.len(), "two kernels have one name");
}
