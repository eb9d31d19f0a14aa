//! What the device can do at most, measured: `kernels/probe.cu`.

use super::args::structs;
use super::driver::Driver;
use super::launch::{Kernel, Launch};
use super::module::Kernels;
use crate::backend::cost::Ceilings;
use crate::error::{Error, Result};
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Arguments of all probes.
    ProbeArgs, 24 { to: u64, from: u64, n: u64 }
}

/// Threads per block.
const BLOCK: u32 = 256;
/// Independent products per round and warp.
const CHAINS: usize = 8;
/// Bytes to copy: more than any cache holds.
const COPY: usize = 1 << 29;
/// Measurements of each, of which the best counts.
const REPEATS: usize = 5;

/// Measures `driver`'s device.
///
/// # Errors
/// [`Error::Device`] if there is no memory for a copy of half a gigabyte, or if a probe computes something else than
/// what it must: then nothing is reported.
pub fn measure<D: Driver>(driver: &D, kernels: &mut Kernels<D>) -> Result<Ceilings> {
    let [to, from] = [driver.alloc(COPY)?, driver.alloc(COPY)?];
    let result = measure_in(driver, kernels, to, from);
    driver.free(to);
    driver.free(from);
    result
}

fn measure_in<D: Driver>(driver: &D, kernels: &mut Kernels<D>, to: u64, from: u64) -> Result<Ceilings> {
    // Two blocks of eight warps fill a multiprocessor for these kernels.
    let blocks = 2 * driver.processors() as u32;
    let mut time = |entry: &'static str, n: usize, blocks: u32| -> Result<f64> {
        let kernel = Kernel { module: "probe", entry };
        let function = kernels.function(driver, kernel, 0)?;
        let args = ProbeArgs { to, from, n: n as u64 };
        let mut best = f64::INFINITY;
        for _ in 0..REPEATS {
            let begin = driver.mark_time()?;
            let launch = Launch { kernel, grid: [blocks, 1, 1], block: BLOCK, shared: 0, args: args.as_bytes() };
            launch.hand_to(driver, function)?;
            best = best.min(driver.elapsed(&begin, &driver.mark_time()?)?);
        }
        Ok(best)
    };
    let check = |what: &str, right: bool| match right {
        true => Ok(()),
        false => Err(Error::device(what, "the known result", "another; nothing is reported")),
    };
    let mut first = [0; 4];
    let warps = (blocks * BLOCK / 32) as f64;

    let rounds = 4096;
    let int8 = warps * (rounds * CHAINS * 2 * 16 * 8 * 32) as f64 / time("probe_mma_i8", rounds, blocks)?;
    driver.download(to, &mut first)?;
    check("int8 probe", i32::from_le_bytes(first) as usize == 4 * CHAINS * 32 * rounds)?;

    let f16 = warps * (rounds * CHAINS * 2 * 16 * 8 * 16) as f64 / time("probe_mma_f16", rounds, blocks)?;
    driver.download(to, &mut first)?;
    check("f16 probe", f32::from_le_bytes(first) as usize == 4 * CHAINS * 16 * rounds)?;

    driver.fill(from, 0x5a, COPY)?;
    let bandwidth = 2.0 * COPY as f64 / time("probe_copy", COPY / 16, 8 * blocks)?;
    driver.download(to + COPY as u64 - 4, &mut first)?;
    check("copy probe", first == [0x5a; 4])?;
    Ok(Ceilings { int8, f16, bandwidth })
}
