//! All modules on a device: that its driver takes them, and what their kernels take of it.

use aquatint::raw::backend::cuda::MODULES;
use common::device;
use std::time::Instant;

/// Names of the kernels in a module's text.
fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.split(".entry ").skip(1).filter_map(|rest| Some(rest.split('(').next()?.trim()))
}

/// The threads of a block that a kernel's text claims to be launched with at most.
fn most_threads(ptx: &str, entry: &str) -> Option<usize> {
    let rest = ptx.split(".entry ").find(|rest| rest.starts_with(entry) && !rest[entry.len()..].starts_with('_'))?;
    rest.split('{').next()?.split(".maxntid ").nth(1)?.split([',', '\n']).next()?.trim().parse().ok()
}

mod on_device {
    use super::*;

    /// Compiles every module, unless the driver kept them from before, and prints what each kernel takes. No kernel may
    /// be given fewer threads than it was written for.
    #[test]
    fn all_modules_load() {
        let begin = Instant::now();
        let Some(device) = device() else { return };
        println!("{}: device open and {} modules loaded in {:.2?}", device.info().name, MODULES.len(), begin.elapsed());
        let modules = aquatint::raw::backend::cuda::driver::Driver::load_all(&device, MODULES).unwrap();
        println!("{:<44} registers  local  shared  threads", "kernel");
        let mut spilled = Vec::new();
        for (module, (name, ptx)) in modules.iter().zip(MODULES) {
            for entry in entries(ptx) {
                let taken = module.resources(entry).unwrap();
                let name = format!("{name} {entry}");
                let (registers, local) = (taken.registers, taken.local);
                println!("{name:<44} {registers:>9} {local:>6} {:>7} {:>8}", taken.shared, taken.threads);
                let block = most_threads(ptx, entry).unwrap_or(1);
                assert!(taken.threads >= block, "{name}: {} threads, written for {block}", taken.threads);
                if local > 0 {
                    spilled.push(format!("{name}: {local} bytes of local memory"));
                }
            }
        }
        println!("{} kernels use local memory", spilled.len());
        spilled.iter().for_each(|line| println!("  {line}"));
    }
}

#[test]
fn every_module_has_kernels() {
    let ptx = MODULES.iter().find(|(name, _)| *name == "linear_i8.w4").unwrap().1;
    assert_eq!(most_threads(ptx, "linear_i8_table"), Some(128));
    for (name, ptx) in MODULES {
        assert!(entries(ptx).count() > 0 && entries(ptx).all(|entry| !entry.contains([' ', '\n'])), "{name}");
    }
}
