//! What the device can do at most, measured: `kernels/probe.cu`.

use super::args::structs;
use super::driver::Driver;
use super::launch::{Kernel, Launch};
use super::module::Kernels;
use crate::backend::cost::Ceilings;
use crate::error::{Error, Result};
use fastrand::Rng;
use half::f16;
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Arguments of all probes.
    ProbeArgs, 24 { to: u64, from: u64, n: u64 }
}

/// Threads per block.
const BLOCK: u32 = 256;
/// Independent products per round and warp.
const CHAINS: usize = 8;
/// Registers of a lane's operands: A, and each chain's B.
const OPERANDS: usize = 4 + 2 * CHAINS;
/// Bytes to copy when that is timed: more than any cache holds.
const COPY: usize = 1 << 29;
/// Bytes after which what is copied repeats.
const PATTERN: usize = 1 << 20;
/// Rounds of products whose results are checked.
const CHECKED: usize = 16;
/// Seconds of work before the clock counts: clocks rise, and then fall as the device gets warm.
const WARM: f64 = 0.1;
/// Seconds that a measurement lasts about.
const LONG: f64 = 0.01;
/// Measurements of each, of which the best counts.
const REPEATS: usize = 5;

/// Measures `driver`'s device.
///
/// # Errors
/// [`Error::Device`] if there is no memory for a copy of half a gigabyte, or if a probe computes something else than
/// what it must: then nothing is reported.
pub fn measure<D: Driver>(driver: &D, kernels: &mut Kernels<D>) -> Result<Ceilings> {
    Probes::with(driver, kernels, COPY, |probes| {
        let warps = f64::from(probes.blocks * BLOCK / 32);
        probes.check_i8()?;
        let int8 = warps * (CHAINS * 2 * 16 * 8 * 32) as f64 * probes.rounds_per_second("probe_mma_i8")?;
        probes.check_f16()?;
        let f16 = warps * (CHAINS * 2 * 16 * 8 * 16) as f64 * probes.rounds_per_second("probe_mma_f16")?;
        probes.check_copy()?;
        let bandwidth = 2.0 * COPY as f64 / probes.best("probe_copy", COPY / 16, WARM)?;
        Ok(Ceilings { int8, f16, bandwidth })
    })
}

/// Runs each probe once and checks what it computes, with copies of `copy` bytes.
///
/// # Errors
/// Those of [`measure`].
pub fn check<D: Driver>(driver: &D, kernels: &mut Kernels<D>, copy: usize) -> Result<()> {
    Probes::with(driver, kernels, copy, |probes| {
        probes.check_i8()?;
        probes.check_f16()?;
        probes.check_copy()
    })
}

struct Probes<'a, D: Driver> {
    driver: &'a D,
    kernels: &'a mut Kernels<D>,
    /// Two ranges of `copy` bytes.
    to: u64,
    from: u64,
    copy: usize,
    blocks: u32,
}

impl<'a, D: Driver> Probes<'a, D> {
    fn with<T>(
        driver: &'a D,
        kernels: &'a mut Kernels<D>,
        copy: usize,
        run: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        // Two blocks of eight warps fill a multiprocessor for these kernels.
        let blocks = 2 * driver.processors() as u32;
        assert!(copy.is_multiple_of(PATTERN) && copy >= (blocks * BLOCK) as usize * 4, "{copy} bytes to copy");
        let [to, from] = [driver.alloc(copy)?, driver.alloc(copy)?];
        let result = run(&mut Probes { driver, kernels, to, from, copy, blocks });
        driver.free(to);
        driver.free(from);
        result
    }

    /// Queues a probe, and returns how long it took.
    fn run(&mut self, entry: &'static str, args: ProbeArgs) -> Result<f64> {
        let kernel = Kernel { module: "probe", entry };
        let function = self.kernels.function(self.driver, kernel, 0)?;
        let begin = self.driver.mark_time()?;
        let launch = Launch { kernel, grid: [self.blocks, 1, 1], block: BLOCK, shared: 0, args: args.as_bytes() };
        launch.hand_to(self.driver, function)?;
        self.driver.elapsed(&begin, &self.driver.mark_time()?)
    }

    /// The least seconds that a probe took of `n`, after `warm` seconds of the same.
    fn best(&mut self, entry: &'static str, n: usize, warm: f64) -> Result<f64> {
        let args = ProbeArgs { to: self.to, from: self.from, n: n as u64 };
        let mut worked = 0.0;
        // A clock that stands still ends it, too.
        for _ in 0..10_000 {
            if worked >= warm {
                break;
            }
            worked += self.run(entry, args)?;
        }
        let mut best = f64::INFINITY;
        for _ in 0..REPEATS {
            best = best.min(self.run(entry, args)?);
        }
        Ok(best)
    }

    /// Rounds of products per second.
    fn rounds_per_second(&mut self, entry: &'static str) -> Result<f64> {
        let first = 1 << 12;
        let rounds = first as f64 * (LONG / self.best(entry, first, WARM)?).clamp(1.0, 256.0);
        let rounds = rounds as usize;
        Ok(rounds as f64 / self.best(entry, rounds, 0.0)?)
    }

    /// Uploads operands, makes a few rounds of products, and compares every thread's sum with those of `want`, a warp's.
    fn check_products(
        &mut self,
        entry: &'static str,
        operands: &[u32],
        equal: impl Fn(usize, u32) -> bool,
    ) -> Result<()> {
        self.driver.upload(self.from, operands.as_bytes())?;
        let threads = (self.blocks * BLOCK) as usize;
        self.driver.fill(self.to, 0xff, threads * 4)?;
        self.run(entry, ProbeArgs { to: self.to, from: self.from, n: CHECKED as u64 })?;
        let mut sums = vec![0u32; threads];
        self.driver.download(self.to, sums.as_mut_bytes())?;
        known(entry, sums.iter().enumerate().all(|(thread, &sum)| equal(thread % 32, sum)))
    }

    /// Bytes without sign by bytes with one, as the kernels multiply them.
    fn check_i8(&mut self) -> Result<()> {
        let mut rng = Rng::with_seed(1);
        let operands: Vec<u32> = std::iter::repeat_with(|| rng.u32(..)).take(32 * OPERANDS).collect();
        let a = |word: u32, i: usize| i64::from(word.to_le_bytes()[i]);
        let b = |word: u32, i: usize| i64::from(word.to_le_bytes()[i] as i8);
        let want: [u32; 32] = std::array::from_fn(|lane| {
            let products = held(&operands, lane, 4).map(|[(x, i), (y, j)]| a(x, i) * b(y, j));
            (CHECKED as i64 * products.sum::<i64>()) as u32
        });
        self.check_products("probe_mma_i8", &operands, |lane, sum| sum == want[lane])
    }

    /// Numbers below 1. A product of matrices rounds a dozen times, by at most `2^-23` of the largest of its terms, which
    /// is no larger than the sum of all their sizes.
    fn check_f16(&mut self) -> Result<()> {
        let mut rng = Rng::with_seed(2);
        let mut number = || u32::from(f16::from_f32(2.0 * rng.f32() - 1.0).to_bits());
        let operands: Vec<u32> = (0..32 * OPERANDS).map(|_| number() | number() << 16).collect();
        let value = |word: u32, i: usize| f64::from(f16::from_bits((word >> (16 * i)) as u16).to_f32());
        let want: [[f64; 2]; 32] = std::array::from_fn(|lane| {
            let products = || held(&operands, lane, 2).map(|[(x, i), (y, j)]| value(x, i) * value(y, j));
            let size = CHECKED as f64 * products().map(f64::abs).sum::<f64>();
            [CHECKED as f64 * products().sum::<f64>(), CHECKED as f64 * 12.0 * size * 2f64.powi(-23)]
        });
        self.check_products("probe_mma_f16", &operands, |lane, sum| {
            let [sum_wanted, allowed] = want[lane];
            (f64::from(f32::from_bits(sum)) - sum_wanted).abs() <= allowed
        })
    }

    /// Random bytes, doubled on the device until they fill the source.
    fn check_copy(&mut self) -> Result<()> {
        let mut rng = Rng::with_seed(3);
        let pattern: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(PATTERN).collect();
        self.driver.upload(self.from, &pattern)?;
        let mut filled = PATTERN;
        while filled < self.copy {
            let more = filled.min(self.copy - filled);
            self.run("probe_copy", ProbeArgs { to: self.from + filled as u64, from: self.from, n: more as u64 / 16 })?;
            filled += more;
        }
        self.driver.fill(self.to, 0, self.copy)?;
        self.run("probe_copy", ProbeArgs { to: self.to, from: self.from, n: self.copy as u64 / 16 })?;
        let mut bytes = vec![0; PATTERN];
        for at in [0, self.copy / PATTERN / 2 * PATTERN, self.copy - PATTERN] {
            self.driver.download(self.to + at as u64, &mut bytes)?;
            known("probe_copy", bytes == pattern)?;
        }
        Ok(())
    }
}

/// An error unless what `probe` computed is what it must.
fn known(probe: &str, right: bool) -> Result<()> {
    match right {
        true => Ok(()),
        false => Err(Error::device(probe, "the known result", "another; nothing is reported")),
    }
}

/// The pairs of factors whose products make up what `lane` holds of all chains' results, each a word of the operands and
/// the place in it, where a word holds `per` numbers. Of A, register r of lane 4g+t holds row g + 8(r%2) and columns
/// `per` (4(r/2) + t) onwards; of B, rows `per` (4r + t) onwards of column g; of the result, columns 2t and 2t+1 of rows
/// g and g+8.
fn held(operands: &[u32], lane: usize, per: usize) -> impl Iterator<Item = [(u32, usize); 2]> {
    let (g, t) = (lane / 4, lane % 4);
    (0..CHAINS * 4 * 8 * per).map(move |i| {
        let (k, element, chain) = (i % (8 * per), i / (8 * per) % 4, i / (8 * per) / 4);
        let (row, column) = (g + element / 2 * 8, 2 * t + element % 2);
        let (half, of_row) = (k / (4 * per), k / per % 4);
        let a = operands[32 * (row / 8 + 2 * half) + row % 8 * 4 + of_row];
        let b = operands[32 * (4 + 2 * chain + half) + column * 4 + of_row];
        [(a, k % per), (b, k % per)]
    })
}
