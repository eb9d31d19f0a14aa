//! Compiles the CUDA kernels to PTX, or takes the copy kept in the repository, and builds the stand-in for libcuda
//! (with the feature `cuda`, the only part that needs a C compiler).
//!
//! The kernels are compiled if the pinned compiler is there: `$CUDA_HOME/bin/nvcc`, else the `nvcc` of the search path.
//! `AQUATINT_KERNELS` decides otherwise: `kept` takes the kept copy, `update` rewrites it, `check` fails if it differs.

#[path = "kernels/ptx.rs"]
mod ptx;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs};

/// The compiler's release: the kept copy is its output, byte for byte.
const RELEASE: &str = "release 13.0,";
const FLAGS: &[&str] = &["-arch=compute_80", "-ptx", "-O3", "--std=c++17", "-I."];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    for input in ["build.rs", "kernels"] {
        println!("cargo:rerun-if-changed={input}");
    }
    for name in ["AQUATINT_KERNELS", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    #[cfg(feature = "cuda")]
    build_shim(&root, &out);

    let mode = env::var("AQUATINT_KERNELS").unwrap_or_default();
    let kept = Kept::open(root.join("kernels/ptx"));
    let nvcc = if mode == "kept" { None } else { pinned_nvcc() };
    let modules = match (mode.as_str(), nvcc) {
        ("" | "kept", None) => kept.modules.clone(),
        ("", Some(nvcc)) => {
            let compiled = compile_all(&nvcc, &root.join("kernels"), &out);
            for difference in kept.differences(&compiled) {
                println!("cargo:warning={difference}; run AQUATINT_KERNELS=update cargo build");
            }
            compiled
        }
        ("update", Some(nvcc)) => {
            let compiled = compile_all(&nvcc, &root.join("kernels"), &out);
            kept.replace(&compiled);
            compiled
        }
        ("check", Some(nvcc)) => {
            let compiled = compile_all(&nvcc, &root.join("kernels"), &out);
            let differences = kept.differences(&compiled);
            assert!(differences.is_empty(), "{}", differences.join("\n"));
            compiled
        }
        ("update" | "check", None) => panic!("AQUATINT_KERNELS={mode} needs nvcc 13.0: set CUDA_HOME or PATH"),
        _ => panic!("AQUATINT_KERNELS: expected kept, update or check, got `{mode}`"),
    };
    embed(&modules, &out);
}

/// Builds the archive to which the bindings' `-lcuda` resolves. Only its folder is announced: the bindings name it.
#[cfg(feature = "cuda")]
fn build_shim(root: &Path, out: &Path) {
    let mut shim = cc::Build::new();
    shim.file(root.join("kernels/driver/shim.c")).opt_level(2).warnings(true).cargo_metadata(false);
    shim.compile("cuda");
    println!("cargo:rustc-link-search=native={}", out.display());
}

/// Writes the table of modules that the library includes.
fn embed(modules: &BTreeMap<String, String>, out: &Path) {
    let mut table = String::from("/// Name and PTX text of every module.\npub static MODULES: &[(&str, &str)] = &[\n");
    for (name, text) in modules {
        let path = out.join(format!("{name}.ptx"));
        write_if_changed(&path, text);
        table += &format!("    ({name:?}, include_str!({path:?})),\n");
    }
    write_if_changed(&out.join("modules.rs"), &(table + "];\n"));
}

/// The compiler, if it is there and of the pinned release.
fn pinned_nvcc() -> Option<PathBuf> {
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    home.into_iter().chain([PathBuf::from("nvcc")]).find(|nvcc| {
        let output = Command::new(nvcc).arg("--version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(RELEASE))
    })
}

/// Every module of every source in `folder`, compiled.
fn compile_all(nvcc: &Path, folder: &Path, out: &Path) -> BTreeMap<String, String> {
    let mut common = DefaultHasher::new();
    (RELEASE, FLAGS).hash(&mut common);
    for header in files(folder, "cuh") {
        (header.file_name(), read(&header)).hash(&mut common);
    }
    let mut jobs = vec![];
    for source in files(folder, "cu") {
        let (stem, text) = (stem(&source), read(&source));
        for (module, macros) in ptx::variants(&stem, &text) {
            let mut key = common.clone();
            (&text, &macros).hash(&mut key);
            jobs.push((module, format!("{stem}.cu"), macros, key.finish()));
        }
    }
    let (jobs, modules) = (Mutex::new(jobs), Mutex::new(BTreeMap::new()));
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((module, source, macros, key)) = { jobs.lock().expect("no panic holds it").pop() } {
                    let text = compile(nvcc, folder, out, &module, &source, &macros, key);
                    let before = modules.lock().expect("no panic holds it").insert(module.clone(), text);
                    assert!(before.is_none(), "two modules named {module}");
                }
            });
        }
    });
    modules.into_inner().expect("no thread panicked")
}

/// Compiles one module, unless its output for the same inputs is still there. Relative paths and a fixed working folder
/// keep this machine's paths out of the output.
fn compile(nvcc: &Path, folder: &Path, out: &Path, module: &str, source: &str, macros: &[String], key: u64) -> String {
    let cached = out.join(format!("{module}.{key:016x}.ptx"));
    if !cached.is_file() {
        let fresh = cached.with_extension("new");
        let mut command = Command::new(nvcc);
        command.current_dir(folder).args(FLAGS).args(macros).arg("-o").arg(&fresh).arg(source);
        let output = command.output().expect("nvcc ran a moment ago");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{source}: nvcc failed (AQUATINT_KERNELS=kept does without)\n{log}");
        fs::rename(&fresh, &cached).unwrap_or_else(|e| panic!("{}: {e}", cached.display()));
    }
    ptx::tidy(&read(&cached))
}

/// The copy in the repository.
struct Kept {
    folder: PathBuf,
    modules: BTreeMap<String, String>,
}

impl Kept {
    fn open(folder: PathBuf) -> Self {
        let modules = files(&folder, "ptx").iter().map(|path| (stem(path), read(path))).collect();
        Kept { folder, modules }
    }

    /// How the copy differs from what the sources give, a sentence each.
    fn differences(&self, compiled: &BTreeMap<String, String>) -> Vec<String> {
        let stale = self.modules.keys().filter(|name| !compiled.contains_key(*name));
        let mut all: Vec<_> = stale.map(|name| format!("kernels/ptx/{name}.ptx: no source makes it")).collect();
        for (name, text) in compiled {
            match self.modules.get(name) {
                None => all.push(format!("kernels/ptx/{name}.ptx is missing")),
                Some(kept) if kept != text => {
                    all.push(format!("kernels/ptx/{name}.ptx differs from what its source gives"))
                }
                Some(_) => (),
            }
        }
        all
    }

    fn replace(&self, compiled: &BTreeMap<String, String>) {
        fs::create_dir_all(&self.folder).expect("kernels/ can be written");
        for name in self.modules.keys().filter(|name| !compiled.contains_key(*name)) {
            fs::remove_file(self.folder.join(format!("{name}.ptx"))).expect("kernels/ptx can be written");
        }
        for (name, text) in compiled {
            write_if_changed(&self.folder.join(format!("{name}.ptx")), text);
        }
    }
}

/// The files of `folder` with this extension, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file").to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).ok().as_deref() != Some(text) {
        fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
