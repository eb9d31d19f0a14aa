//! What a launch did, for judging kernels: instruction counts, bank conflicts, global sectors.

use std::collections::BTreeMap;

use crate::kernels::D;
use crate::order::bits;

/// Shared-memory passes: one per wavefront; the ideal counts what a conflict-free access would need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wavefronts {
    pub actual: u64,
    pub ideal: u64,
}

/// 32-byte sectors of global memory touched, summed over warp instructions; the minimum packs the distinct bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sectors {
    pub touched: u64,
    pub minimum: u64,
}

/// Counts of one launch.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Warp instructions executed, by opcode with its modifiers.
    pub instructions: BTreeMap<String, u64>,
    /// Warp instructions executed, by PTX line.
    pub lines: BTreeMap<u32, u64>,
    pub total_instructions: u64,
    pub shared_loads: Wavefronts,
    pub shared_stores: Wavefronts,
    pub matrix_loads: Wavefronts,
    pub global_loads: Sectors,
    pub global_stores: Sectors,
}

/// Adds the wavefronts of one access: 32 banks of 4 bytes; 8-byte accesses go by half-warps and 16-byte ones by
/// quarter-warps.
pub(crate) fn wavefronts(sum: &mut Wavefronts, at: &D, mask: u32, len: usize) {
    let lanes = match len {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    for phase in 0..32 / lanes {
        let part = mask & (u32::MAX >> (32 - lanes)) << (phase * lanes);
        if part != 0 {
            sum.actual += u64::from(conflicts(bits(part).map(|lane| at[lane]), len));
            sum.ideal += 1;
        }
    }
}

/// The most distinct words that one bank must deliver.
pub(crate) fn conflicts(addresses: impl Iterator<Item = u64>, len: usize) -> u32 {
    // The first word of each bank; words that conflict with it are rare and kept aside.
    let mut first = [u64::MAX; 32];
    let mut more: Vec<u64> = Vec::new();
    for address in addresses {
        for word in (0..len.div_ceil(4) as u64).map(|word| (address >> 2) + word) {
            let bank = &mut first[word as usize & 31];
            if *bank == u64::MAX {
                *bank = word;
            } else if *bank != word && !more.contains(&word) {
                more.push(word);
            }
        }
    }
    let mut counts = [1; 32];
    more.iter().for_each(|word| counts[*word as usize & 31] += 1);
    counts.into_iter().max().unwrap_or(1)
}

/// Adds the sectors of one access.
pub(crate) fn sectors(sum: &mut Sectors, at: &D, mask: u32, len: usize) {
    if mask == 0 {
        return;
    }
    let mut list = [0; 32];
    let mut count = 0;
    let mut sorted = true;
    for lane in bits(mask) {
        sorted &= count == 0 || list[count - 1] <= at[lane];
        list[count] = at[lane];
        count += 1;
    }
    let list = &mut list[..count];
    if !sorted {
        list.sort_unstable();
    }
    let (mut touched, mut distinct) = (1, 1);
    for pair in list.windows(2) {
        distinct += u64::from(pair[0] != pair[1]);
        touched += u64::from(pair[0] >> 5 != pair[1] >> 5);
    }
    sum.touched += touched;
    sum.minimum += (distinct * len as u64).div_ceil(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(len: usize, stride: u64) -> Wavefronts {
        let at = std::array::from_fn(|lane| lane as u64 * stride);
        let mut sum = Wavefronts::default();
        wavefronts(&mut sum, &at, u32::MAX, len);
        sum
    }

    #[test]
    fn bank_conflicts() {
        assert_eq!(count(4, 4), Wavefronts { actual: 1, ideal: 1 });
        assert_eq!(count(4, 8), Wavefronts { actual: 2, ideal: 1 });
        assert_eq!(count(4, 128), Wavefronts { actual: 32, ideal: 1 });
        assert_eq!(count(4, 0), Wavefronts { actual: 1, ideal: 1 });
        assert_eq!(count(1, 1), Wavefronts { actual: 1, ideal: 1 });
        assert_eq!(count(8, 8), Wavefronts { actual: 2, ideal: 2 });
        assert_eq!(count(16, 16), Wavefronts { actual: 4, ideal: 4 });
        assert_eq!(count(16, 32), Wavefronts { actual: 8, ideal: 4 });
        assert_eq!(count(16, 128), Wavefronts { actual: 32, ideal: 4 });
    }

    #[test]
    fn global_sectors() {
        let of = |len, stride| {
            let at = std::array::from_fn(|lane| 4096 + lane as u64 * stride);
            let mut sum = Sectors::default();
            sectors(&mut sum, &at, u32::MAX, len);
            (sum.touched, sum.minimum)
        };
        assert_eq!(of(4, 4), (4, 4));
        assert_eq!(of(4, 32), (32, 4));
        assert_eq!(of(4, 0), (1, 1));
        assert_eq!(of(16, 16), (16, 16));
    }
}
