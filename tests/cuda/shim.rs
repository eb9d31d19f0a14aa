//! The stand-in for libcuda and the devices behind it: without a driver, and with one of our own (`tests/fake`) that
//! checks what it is asked. A driver is opened once per process, so each test runs a child with the fake on its path.

use aquatint::raw::backend::cuda::MODULES;
use aquatint::raw::backend::cuda::device::{Device, Resources, WeightPath, devices, find_devices, inspect};
use aquatint::raw::backend::cuda::driver::Driver;
use cust::sys;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The folder of the fake; `None`, said aloud, without a C compiler.
fn fake() -> Option<&'static Path> {
    common::fake_driver(env!("CARGO_TARGET_TMPDIR").as_ref())
}

/// Runs the ignored test `name` of this module with the fake, which fails as `how` says, as a driver of CUDA 12.2.
fn child(name: &str, how: &str) -> Option<Vec<String>> {
    child_of(name, how, "12020")
}

/// The same with a driver of this version.
fn child_of(name: &str, how: &str, version: &str) -> Option<Vec<String>> {
    let mut command = Command::new(env::current_exe().expect("this test"));
    command.args(["--exact", &format!("shim::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("LD_LIBRARY_PATH", fake()?).env("FAKE_CUDA", how).env("FAKE_CUDA_VERSION", version);
    let output = command.output().expect("it starts");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("1 passed"), "{name}, {how}:\n{out}\n{err}");
    Some(err.lines().filter_map(|line| Some(line.strip_prefix("fake: ")?.to_owned())).collect())
}

fn probe() -> &'static str {
    MODULES.iter().find(|(name, _)| *name == "probe").expect("a module of its own").1
}

/// Bytes that differ from their neighbours.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 16) as u8).collect()
}

/// The source of the bindings that this test was built with: the build noted it beside this program.
fn bindings(root: &Path) -> PathBuf {
    let lock = fs::read_to_string(root.join("Cargo.lock")).expect("the lock file");
    let package = lock.split("[[package]]").find(|p| p.contains("name = \"cust_raw\"")).expect("a dependency");
    let version = package.lines().find(|line| line.starts_with("version = ")).expect("a version");
    let deps = env::current_exe().expect("this test").parent().expect("a folder").to_owned();
    let notes = fs::read_dir(&deps).expect("a folder").map(|entry| entry.expect("an entry").path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("cust_raw-") && name.ends_with(".d")
    });
    let sources = notes.flat_map(|note| {
        let text = fs::read_to_string(note).expect("text");
        text.lines().filter_map(|line| Some(line.strip_suffix(':')?.replace("\\ ", " "))).collect::<Vec<_>>()
    });
    // Notes of other versions may be left from earlier builds.
    let of_version = |source: &PathBuf| {
        let manifest = source.parent().and_then(Path::parent).map(|package| package.join("Cargo.toml"));
        let text = manifest.and_then(|path| fs::read_to_string(path).ok());
        source.ends_with("src/cuda.rs") && text.is_some_and(|text| text.lines().any(|line| line == version))
    };
    let found = sources.map(PathBuf::from).find(of_version);
    found.unwrap_or_else(|| panic!("no note in {} of where the bindings are", deps.display()))
}

#[test]
fn every_entry_of_the_bindings_is_defined() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bindings = fs::read_to_string(bindings(root)).expect("bindings");
    let declared: BTreeSet<_> =
        bindings.split("pub fn ").skip(1).filter_map(|f| f.split('(').next()).filter(|f| f.starts_with("cu")).collect();
    let list = fs::read_to_string(root.join("kernels/driver/entries.h")).expect("the list");
    let defined: BTreeSet<_> = list.lines().filter_map(|line| line.split_once("ENTRY(")?.1.strip_suffix(')')).collect();
    assert!(declared.len() > 300);
    assert_eq!(declared, defined);

    // The codes that pass the filter are those of the enum.
    let codes =
        bindings.split("pub enum cudaError_enum {").nth(1).expect("the enum").split('}').next().expect("its end");
    let codes: BTreeSet<u32> =
        codes.lines().filter_map(|line| line.trim().trim_end_matches(',').rsplit(" = ").next()?.parse().ok()).collect();
    let shim = fs::read_to_string(root.join("kernels/driver/shim.c")).expect("the shim");
    let cases = shim.split("switch (code) {").nth(1).expect("the filter").split("return code").next().expect("its end");
    let mut passed = BTreeSet::from([999]);
    for case in cases.split("case ").skip(1).map(|case| case.trim().trim_end_matches(':')) {
        let case = if case == "NOT_FOUND" { "500" } else { case };
        let (from, to) = case.split_once(" ... ").unwrap_or((case, case));
        passed.extend(from.parse::<u32>().expect("a code")..=to.parse().expect("a code"));
    }
    assert_eq!(codes, passed);
}

#[test]
fn no_driver() {
    if !devices().is_empty() {
        return eprintln!("skipped: this machine has a CUDA device");
    }
    let e = find_devices().unwrap_err().to_string();
    let opened = Device::open(0).err().expect("no device").to_string();
    assert_eq!(e, opened);
    assert_eq!(e, inspect(0).unwrap_err().to_string());
    assert!(!e.contains('\n') && e.contains("expected an NVIDIA"), "{e}");
}

#[test]
fn one_bad_device_hides_no_other() {
    child("the_second_of_two", "broken device");
}

#[test]
#[ignore = "run by one_bad_device_hides_no_other"]
fn the_second_of_two() {
    assert_eq!(devices().iter().map(|device| device.index).collect::<Vec<_>>(), [1]);
    assert!(inspect(0).unwrap_err().to_string().contains("a hardware error"));
    assert_eq!(Device::open(1).expect("the good one").name(), "Fake 1, sm_90");
}

/// The driver is looked for where it lies without the loader being told.
#[test]
fn drivers_lie_in_known_places() {
    let Some(fake) = fake() else { return };
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver-places");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).expect("a folder");
    let (main, started) = (root.join("main.c"), root.join("main"));
    fs::write(&main, "int cuInit(unsigned); int main(void) { return cuInit(0); }").expect("a source");
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/driver/shim.c");
    let mut cc = Command::new("cc");
    cc.arg(format!("-DROOT={:?}", root.to_str().expect("UTF-8"))).arg("-o").args([&started, &main, &shim]);
    assert!(cc.args(["-ldl", "-lpthread"]).status().expect("it starts").success());
    let start = || Command::new(&started).status().expect("it starts").code();
    assert_eq!(start(), Some(100), "no driver");
    for place in ["usr/lib/wsl/lib", "usr/local/nvidia/lib64"] {
        let folder = root.join(place);
        fs::create_dir_all(&folder).expect("a folder");
        fs::copy(fake.join("libcuda.so.1"), folder.join("libcuda.so.1")).expect("a copy");
        assert_eq!(start(), Some(0), "{place}");
        fs::remove_dir_all(&folder).expect("it is there");
    }
}

/// Modules are compiled by several threads, and once only for all that use a device at a time.
#[test]
fn modules_are_loaded_side_by_side() {
    let Some(lines) = child("many_modules", "slow compiler") else { return };
    assert_eq!(lines.iter().filter(|line| *line == "compiled").count(), 6, "{lines:?}");
    if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        assert!(!lines.contains(&"compiled alone".into()), "{lines:?}");
    }
    assert_eq!(lines.last().map(String::as_str), Some("context released with 0 handles"));
}

#[test]
#[ignore = "run by modules_are_loaded_side_by_side"]
fn many_modules() {
    let (first, second) = (Device::open(0).expect("the fake"), Device::open(0).expect("again"));
    let modules = first.load_all(&MODULES[..6]).expect("modules");
    for (module, (name, ptx)) in modules.iter().zip(MODULES) {
        let entry = ptx.split(".entry ").nth(1).and_then(|rest| rest.split('(').next()).expect("a kernel").trim();
        let taken = module.resources(entry).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(taken, Resources { registers: 40, local: 8, shared: 256, threads: 1024 });
    }
    drop(first);
    second.load(MODULES[5].0, MODULES[5].1).expect("a module");
    // One that fails is the error of all.
    let e = second.load_all(&[MODULES[0], ("odd", "none"), MODULES[1]]).err().expect("refused").to_string();
    assert!(e.starts_with("module odd: "), "{e}");
}

#[test]
fn arguments_are_forwarded() {
    child("hard_argument_lists", "");
}

#[test]
#[ignore = "run by arguments_are_forwarded"]
fn hard_argument_lists() {
    let reserved = ["1", "2", "3", "4", "5", "6", "7", "8"].concat();
    let mut bytes = [0; 64];
    for (word, digit) in bytes.chunks_exact_mut(8).zip(reserved.bytes()) {
        word[0] = digit - b'0';
    }
    let handle = sys::CUipcMemHandle { reserved: bytes.map(|b| b as _) };
    let mut at = 0;
    // SAFETY: the fake takes a word, a structure of eight and a number, and writes the word; then a pointer that it
    // does not follow and two floats; the last entry it does not have.
    unsafe {
        assert_eq!(sys::cuIpcOpenMemHandle_v2(&mut at, handle, 9), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(at, 912345678);
        let clamped = sys::cuTexRefSetMipmapLevelClamp(std::ptr::dangling_mut(), 1.5, 2.5);
        assert_eq!(clamped, sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuProfilerStart(), sys::CUresult::CUDA_ERROR_NOT_FOUND);
    }
}

#[test]
fn work_goes_through_in_order() {
    let Some(lines) = child("work", "") else { return };
    let expected = [
        "probe_co: attribute 8 is 65536",
        "captured 2",
        "replayed 2",
        "replayed 2",
        "captured 0",
        "captured 0",
        "context released with 0 handles",
    ];
    let launch = "probe_copy: grid 7 2 3, block 128 1 1, shared 65536, our stream, args 1 2 3";
    let lines: Vec<_> = lines.iter().filter(|line| *line != launch).collect();
    assert_eq!(lines, expected);
}

#[test]
#[ignore = "run by work_goes_through_in_order"]
fn work() {
    let device = Device::open(0).expect("the fake");
    assert_eq!(device.name(), "Fake 0, sm_90");
    assert_eq!(device.processors(), 132);
    assert_eq!(device.memory().expect("memory").free, 1000);

    // Copies, more than all buffers of the ring, from memory that changes at once.
    let at = device.alloc(3 << 20).expect("memory");
    let expected = pattern(3 << 20);
    let mut bytes = expected.clone();
    device.upload(at, &bytes).expect("a copy");
    bytes.fill(7);
    device.fill(at + 10, 9, 5).expect("a fill");
    device.download(at, &mut bytes).expect("a copy");
    assert_eq!(bytes[10..15], [9; 5]);
    bytes[10..15].copy_from_slice(&expected[10..15]);
    assert!(bytes == expected);

    // No byte outside an allocation.
    for (start, len) in [(at + 1, 3 << 20), (at - 1, 2), (at + (3 << 20), 1), (0, 1), (u64::MAX, 1)] {
        assert!(device.fill(start, 0, len).is_err() && device.download(start, &mut vec![0; len]).is_err());
    }
    device.fill(at + (3 << 20), 0, 0).expect("nothing to do");
    let e = device.alloc(1 << 30).unwrap_err().to_string();
    assert!(e.starts_with("memory of Fake 0: expected 1073741824 bytes free;") && e.ends_with("got 1000"), "{e}");
    device.free(at);

    // Kernels.
    let module = device.load("probe", probe()).expect("a module");
    let error = |shared| device.function(&module, "probe_copy", shared).err().expect("refused").to_string();
    assert!(error(200 << 10).contains("at most 102400 bytes of shared memory"));
    assert!(device.function(&module, "probe", 0).is_err());
    let copy = device.function(&module, "probe_copy", 64 << 10).expect("a kernel");
    // A later wish for less takes nothing away from it.
    device.function(&module, "probe_copy", 50 << 10).expect("a kernel");
    let args: Vec<u8> = [1u64, 2, 3].iter().flat_map(|x| x.to_le_bytes()).collect();
    // SAFETY: the fake runs no kernel.
    let launch_with = |grid, block, shared, args: &[u8]| unsafe { device.launch(copy, grid, block, shared, args) };
    let launch = || launch_with([7, 2, 3], 128, 64 << 10, &args);
    launch().expect("a launch");
    let e = launch_with([1; 3], 32, 0, &args[..16]).unwrap_err().to_string();
    assert_eq!(e, "kernel probe_copy: expected 24 bytes of arguments, got 16");
    assert!(launch_with([1; 3], 32, 65537, &args).is_err());
    drop(module);

    // Graphs; what fails while recording leaves the stream as it was.
    let graph = device.capture(|| launch().and_then(|()| launch())).expect("a graph");
    device.replay(&graph).expect("a replay");
    device.replay(&graph).expect("a replay");
    assert!(device.capture(|| Err(aquatint::Error::request("", "", ""))).is_err());
    let e = device.capture(|| device.alloc(8).map(drop)).err().expect("refused").to_string();
    assert!(e.contains("work that can be captured"), "{e}");

    // Marks.
    let (from, untimed) = (device.mark_time().expect("a mark"), device.mark().expect("a mark"));
    device.move_mark(&untimed).expect("a mark that moves");
    let at = device.alloc(8).expect("memory");
    device.fill(at, 1, 8).expect("a fill");
    let to = device.mark_time().expect("a mark");
    assert!((device.elapsed(&from, &to).expect("a time") - 0.001).abs() < 1e-9);
    assert!(device.elapsed(&untimed, &to).is_err());
    device.wait_for(&untimed).expect("passed");
    // What outlives its device does no harm; memory left over goes with it.
    drop(device);
    drop((graph, from, to, untimed));
}

/// Pages of the file are locked only by drivers that do not mark them as written.
#[test]
fn weights_arrive_either_way() {
    let locked = |lines: Vec<String>| lines.iter().filter(|line| line.starts_with("locked")).count();
    let Some(lines) = child_of("weights", "", "12080") else { return };
    assert_eq!(locked(lines), 2);
    for (how, version) in [("no locks", "12080"), ("no pages", "13000"), ("", "12070"), ("", "11040")] {
        assert_eq!(locked(child_of("weights", how, version).expect("as before")), 0, "{how}, {version}");
    }
}

#[test]
#[ignore = "run by weights_arrive_either_way"]
fn weights() {
    let device = Device::open(0).expect("the fake");
    let how = env::var("FAKE_CUDA").expect("set");
    let may_lock = how != "no locks" && device.info().driver >= (12, 8);
    let paths = if may_lock { &[WeightPath::Locked, WeightPath::Ring][..] } else { &[WeightPath::Ring] };
    assert_eq!((device.weight_paths(), device.weight_path()), (paths, paths[0]));
    if !may_lock {
        let e = device.set_weight_path(WeightPath::Locked).unwrap_err().to_string();
        assert_eq!(e, "the way of weights: expected one of [Ring], got Locked");
    }
    // More than what is locked at once and than the ring, and with an end too small to lock.
    let len = (256 << 20) + (9 << 20) + 12345;
    let at = device.alloc(len).expect("memory");
    let expected = pattern(len);
    for &path in paths {
        device.set_weight_path(path).expect("one of them");
        device.fill(at, 0, len).expect("a fill");
        let mut from = expected.clone();
        device.upload_weights(at, &from[..1000]).expect("a copy");
        device.upload_weights(at + 1000, &from[1000..]).expect("a copy");
        from.fill(0);
        device.download(at, &mut from).expect("a copy");
        assert!(from == expected, "{path:?}");
    }
}

#[test]
fn faults_are_explained() {
    child("refused_module", "");
    child("lost_device", "lost");
}

#[test]
#[ignore = "run by faults_are_explained"]
fn refused_module() {
    let device = Device::open(0).expect("the fake");
    let newer = probe().replace(".version 7.0", ".version 8.3");
    let e = device.load("probe", &newer).err().expect("refused").to_string();
    let expected = "module probe: expected a driver that compiles PTX 8.3; update it if it is older, got CUDA 12.2, which \
                    compiles PTX up to 8.2: ptxas fatal: Unsupported .version";
    assert_eq!(e, expected);
}

#[test]
#[ignore = "run by faults_are_explained"]
fn lost_device() {
    let device = Device::open(0).expect("the fake");
    let e = device.wait().unwrap_err().to_string();
    assert_eq!(
        e,
        "waiting for the device: expected a sound kernel before it; the device is lost to this process, which must be \
         started anew, got an access outside memory (CUDA error 700)"
    );
}
