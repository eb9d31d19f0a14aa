//! Queries, keys and values of a head as codes.

use super::super::arena::{floats_mut, typed_mut};
use super::super::math::{LANES, greater, greatest, least, lesser};
use super::super::simd::{GROUP, MR, NR, panel_len, vectorized};
use super::{KEYS, QUERIES};
use zerocopy::FromBytes;

/// The code of 0 in queries.
const ZERO: u8 = 128;
/// Highest code of queries, keys and values.
const TOP: f32 = 127.0;
/// Adding and subtracting this rounds to an integer, ties to even, for magnitudes below 2^22.
pub const ROUND: f32 = 12_582_912.0;

/// Bytes of one head's codes, all of them multiples of 64.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Bytes of a key's codes.
    pub key: usize,
    /// Features, in whole groups.
    pub wide: usize,
    /// Keys, in whole groups.
    pub keys: usize,
    /// Keys, in whole tiles: so many numbers there are per key.
    pub numbers: usize,
}

impl Sizes {
    pub fn new(e: usize, tk: usize) -> Self {
        Sizes {
            key: panel_len(e),
            wide: e.next_multiple_of(GROUP),
            keys: tk.next_multiple_of(GROUP),
            numbers: tk.next_multiple_of(NR),
        }
    }

    /// Bytes of a head in the workspace.
    pub fn head(&self) -> usize {
        self.keys * (self.key + self.wide) + self.numbers * 8 + self.wide * 12
    }

    /// Bytes of private memory.
    pub fn private(&self) -> usize {
        QUERIES * (self.key + self.wide * 4 + 12) + MR * KEYS * 5
    }
}

/// A head's keys and values, to write.
pub struct CodesMut<'a> {
    pub keys: &'a mut [u32],
    pub values: &'a mut [u32],
    pub scales: &'a mut [f32],
    pub offsets: &'a mut [f32],
    pub mean: &'a mut [f32],
    pub middle: &'a mut [f32],
    pub steps: &'a mut [f32],
}

impl<'a> CodesMut<'a> {
    pub fn new(bytes: &'a mut [u8], sizes: &Sizes) -> Self {
        let (keys, rest) = bytes.split_at_mut(sizes.keys * sizes.key);
        let (values, rest) = rest.split_at_mut(sizes.keys * sizes.wide);
        let (scales, rest) = floats_mut(rest).split_at_mut(sizes.numbers);
        let (offsets, rest) = rest.split_at_mut(sizes.numbers);
        let (mean, rest) = rest.split_at_mut(sizes.wide);
        let (middle, steps) = rest.split_at_mut(sizes.wide);
        CodesMut { keys: typed_mut(keys), values: typed_mut(values), scales, offsets, mean, middle, steps }
    }
}

/// A head's keys and values.
pub struct Codes<'a> {
    /// Panels of 16 keys, in the order of [`Isa::tile_i8`].
    pub keys: &'a [i8],
    /// Per block of keys, panels of 16 features.
    pub values: &'a [i8],
    /// Step of each key's codes.
    pub scales: &'a [f32],
    /// What a score has too much, because queries are coded with zero 128: to be added.
    pub offsets: &'a [f32],
    /// The middle of each feature's values.
    pub middle: &'a [f32],
    /// Step of each feature's codes.
    pub steps: &'a [f32],
}

impl<'a> Codes<'a> {
    pub fn new(bytes: &'a [u8], sizes: &Sizes) -> Self {
        let (keys, rest) = bytes.split_at(sizes.keys * sizes.key);
        let (values, rest) = rest.split_at(sizes.keys * sizes.wide);
        let floats = <[f32]>::ref_from_bytes(rest).expect("parts of a head are multiples of 64 bytes");
        let (scales, rest) = floats.split_at(sizes.numbers);
        let (offsets, rest) = rest.split_at(sizes.numbers);
        let (middle, steps) = rest[sizes.wide..].split_at(sizes.wide);
        let [keys, values] = [keys, values].map(|b| <[i8]>::ref_from_bytes(b).expect("bytes"));
        Codes { keys, values, scales, offsets, middle, steps }
    }
}

/// The symmetric code of `x`, whose step is `1 / inverse`.
#[inline(always)]
fn code(x: f32, inverse: f32) -> i32 {
    (greater(lesser(x * inverse, TOP), -TOP) + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// Step of symmetric codes for magnitudes up to `most`, and its inverse. What is too small to divide by has codes 0.
#[inline(always)]
fn step(most: f32) -> (f32, f32) {
    if most > 1e-30 { (most / TOP, TOP / most) } else { (0.0, 0.0) }
}

/// Four codes as they lie in a panel.
#[inline(always)]
fn quad(codes: [i32; 4]) -> u32 {
    u32::from_le_bytes(codes.map(|c| c as u8))
}

vectorized! {
    /// Queries as codes with zero 128, `stride` bytes each, and the factor that brings their scores to powers of 2.
    pub fn EncodeQueries<'a, I>(
        q: &'a [f32], sizes: [usize; 4], scale: f32, codes: &'a mut [u8], slopes: &'a mut [f32],
    ) {
        let [d, e, column, stride] = sizes;
        for ((row, codes), slope) in q.chunks_exact(d).zip(codes.chunks_exact_mut(stride)).zip(slopes) {
            let row = &row[column..][..e];
            let most = greater(greatest(row), -least(row)) * scale.abs();
            let (size, inverse) = step(most);
            for (code_at, &x) in codes.iter_mut().zip(row) {
                *code_at = (code(x * scale, inverse) + i32::from(ZERO)) as u8;
            }
            codes[e..].fill(ZERO);
            // Not 0, which is no factor for an infinite distance.
            *slope = greater(size * std::f32::consts::LOG2_E, f32::MIN_POSITIVE);
        }
    }
}

/// The greatest `|x - y|`.
#[inline(always)]
fn furthest(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            lanes[i] = greater(lanes[i], (x[i] - y[i]).abs());
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane = greater(*lane, (x - y).abs());
    }
    greatest(&lanes)
}

vectorized! {
    /// Keys less their mean as codes, in panels; their steps, and what scores need added.
    pub fn EncodeKeys<'a, I>(
        k: &'a [f32], place: [usize; 4], codes: &'a mut [u32], scales: &'a mut [f32], offsets: &'a mut [f32],
        mean: &'a mut [f32],
    ) {
        let [d, e, tk, column] = place;
        let row = |key: usize| &k[key * d + column..][..e];
        mean.fill(0.0);
        for key in 0..tk {
            for (mean, x) in mean.iter_mut().zip(row(key)) {
                *mean += x;
            }
        }
        for mean in mean.iter_mut() {
            *mean /= tk as f32;
        }
        // Spare keys have codes, steps and offsets 0; nobody looks at their scores.
        let whole = panel_len(e) / 4 * GROUP;
        if !tk.is_multiple_of(GROUP) {
            codes[tk / GROUP * whole..].fill(0);
        }
        scales[tk..].fill(0.0);
        offsets[tk..].fill(0.0);
        for key in 0..tk {
            let row = row(key);
            let (size, inverse) = step(furthest(row, &mean[..e]));
            let panel = &mut codes[key / GROUP * whole..][..whole];
            let words = panel.iter_mut().skip(key % GROUP).step_by(GROUP);
            let (row, row_rest) = row.as_chunks::<4>();
            let (mean, mean_rest) = mean[..e].as_chunks::<4>();
            let mut last = [0.0; 4];
            last.iter_mut().zip(row_rest.iter().zip(mean_rest)).for_each(|(d, (x, mean))| *d = x - mean);
            let differences = row.iter().zip(mean).map(|(x, mean)| [0, 1, 2, 3].map(|i| x[i] - mean[i]));
            let mut total = 0;
            // Words beyond the key's codes, up to a whole panel, meet no codes of a query.
            for (word, x) in words.zip(differences.chain([last])) {
                let four = x.map(|x| code(x, inverse));
                total += four.iter().sum::<i32>();
                *word = quad(four);
            }
            scales[key] = size;
            offsets[key] = -(total * i32::from(ZERO)) as f32 * size;
        }
    }
}

vectorized! {
    /// Values less their feature's middle as codes: blocks of keys, in each panels of features; middles and steps.
    pub fn EncodeValues<'a, I>(
        v: &'a [f32], place: [usize; 4], codes: &'a mut [u32], middle: &'a mut [f32], steps: &'a mut [f32],
    ) {
        let [d, e, tk, column] = place;
        let row = |key: usize| &v[key * d + column..][..e];
        let (least, most) = (&mut *middle, &mut *steps);
        least.fill(0.0);
        most.fill(0.0);
        least[..e].copy_from_slice(row(0));
        most[..e].copy_from_slice(row(0));
        for key in 1..tk {
            for ((least, most), &x) in least.iter_mut().zip(most.iter_mut()).zip(row(key)) {
                *least = lesser(*least, x);
                *most = greater(*most, x);
            }
        }
        for (least, most) in least.iter_mut().zip(most.iter_mut()) {
            let half = 0.5 * (*most - *least);
            *least += half;
            *most = half;
        }
        let wide = middle.len();
        let blocks = (0..tk).step_by(KEYS).zip(codes.chunks_mut(KEYS * wide / 4));
        for (first, block) in blocks {
            let n = KEYS.min(tk - first);
            // There is room for all keys, and fewer may be seen.
            for (g, panel) in block.chunks_exact_mut(panel_len(n) * GROUP / 4).enumerate().take(wide / GROUP) {
                let features = g * GROUP..e.min((g + 1) * GROUP);
                let inverse: [f32; GROUP] = std::array::from_fn(|f| step(steps[g * GROUP + f]).1);
                let centre: [f32; GROUP] = std::array::from_fn(|f| middle[g * GROUP + f]);
                for (q, words) in panel.chunks_exact_mut(GROUP).enumerate() {
                    // Keys and features that fill up are at the middle: code 0.
                    let mut x = [centre; 4];
                    for (i, x) in x.iter_mut().enumerate().take(n.saturating_sub(4 * q)) {
                        x[..features.len()].copy_from_slice(&row(first + 4 * q + i)[features.clone()]);
                    }
                    for f in 0..GROUP {
                        words[f] = quad([0, 1, 2, 3].map(|i| code(x[i][f] - centre[f], inverse[f])));
                    }
                }
            }
        }
        for most in steps {
            *most = step(*most).0;
        }
    }
}
