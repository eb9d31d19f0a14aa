//! Gaussian noise: two deterministic streams of standard normals.
//!
//! [`TorchRng`] gives the very numbers of PyTorch's CPU generator, so that latents can be compared with those of
//! diffusers. [`FastRng`] is the default: one stream per image, cheap to seed. Both are pure functions of their seed:
//! no clock and no operating system entropy. The f32 Box-Muller kernel that they share uses only IEEE additions,
//! multiplications, fused multiply-adds and square roots, so it gives the same bits on every machine; only
//! [`TorchRng`]'s path for fewer than 16 values asks the platform's `libm` (in f64, then rounded to f32).

/// A source of standard normal f32 values.
pub trait Normals {
    /// Fills `out` with independent draws from N(0, 1) and advances the stream.
    fn randn(&mut self, out: &mut [f32]);
}

/// Number of words in the state of mt19937.
const STATE_LEN: usize = 624;
/// Distance of the word that the mt19937 recurrence mixes in.
const SHIFT_LEN: usize = 397;
/// Values per Box-Muller block: 8 radii and 8 angles, as in PyTorch.
const BLOCK_LEN: usize = 16;

/// The stream of PyTorch's CPU generator (`torch.Generator().manual_seed(seed)`), bit for bit.
///
/// Follows the AVX2 build of PyTorch, which is what runs on any x86 machine since 2013, also on those with AVX-512:
/// - the engine is mt19937 (Matsumoto and Nishimura, 1998), seeded with the low 32 bits of the seed;
/// - 16 values or more (`normal_fill` in ATen/native/cpu/DistributionTemplates.h): one 24-bit uniform per value, then
///   Box-Muller on blocks of 16, the first 8 of a block being radii and the last 8 angles. When the length is not a
///   multiple of 16, the **last 16 values** are drawn again from 16 fresh uniforms, overlapping the block before;
/// - fewer than 16 values: Box-Muller in f64 on 53-bit uniforms, where the sine is kept for the next such draw.
///   The kept value outlives calls, also calls of 16 values or more in between.
///
/// PyTorch for other processors calls another logarithm and sine, so its last bit may differ there; ours does not.
#[derive(Clone)]
pub struct TorchRng {
    state: [u32; STATE_LEN],
    /// Index of the next word of `state`; `STATE_LEN` when a new generation is due.
    next: usize,
    /// The sine half of the last f64 Box-Muller pair, if not yet handed out.
    kept: Option<f64>,
}

impl TorchRng {
    /// The generator after `manual_seed(seed)`. Like PyTorch, it ignores the high 32 bits of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; STATE_LEN];
        state[0] = seed as u32;
        for i in 1..STATE_LEN {
            let last: u32 = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        TorchRng { state, next: STATE_LEN, kept: None }
    }

    /// `torch.randn(out.len(), generator=g)`: a tensor of any shape with that many elements, in row-major order.
    pub fn randn(&mut self, out: &mut [f32]) {
        if out.len() < BLOCK_LEN {
            out.fill_with(|| self.normal_f64() as f32);
            return;
        }
        out.fill_with(|| uniform_f32(self.word()));
        let tail_off = out.len() - BLOCK_LEN;
        let (blocks, tail) = out.as_chunks_mut::<BLOCK_LEN>();
        blocks.iter_mut().for_each(normal_block);
        if !tail.is_empty() {
            let mut last = [0.0; BLOCK_LEN];
            last.fill_with(|| uniform_f32(self.word()));
            normal_block(&mut last);
            out[tail_off..].copy_from_slice(&last);
        }
    }

    /// The next tempered word of mt19937.
    fn word(&mut self) -> u32 {
        if self.next == STATE_LEN {
            self.generate();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Replaces the state by its next generation, in place.
    fn generate(&mut self) {
        for i in 0..STATE_LEN {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE_LEN] & 0x7fff_ffff);
            let twisted = (mixed >> 1) ^ if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT_LEN) % STATE_LEN] ^ twisted;
        }
        self.next = 0;
    }

    /// A uniform in [0, 1) with 53 bits; the first word is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.word());
        let word = high << 32 | u64::from(self.word());
        (word & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// One normal of `at::normal_distribution<double>` (ATen/core/DistributionsHelper.h).
    fn normal_f64(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        let (angle, radius) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-radius).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * angle;
        self.kept = Some(radius * theta.sin());
        radius * theta.cos()
    }
}

impl Normals for TorchRng {
    fn randn(&mut self, out: &mut [f32]) {
        TorchRng::randn(self, out);
    }
}

/// A fast stream of normals for one image: wyrand (the `fastrand` crate) and Box-Muller.
///
/// Image k of a run with seed K has the seed K + k, so an image is the same alone and in a batch, and a picture of a
/// batch can be made again on its own. The stream is the same on every machine. It depends on the version of
/// `fastrand` only through `Rng::with_seed(..).u64(..)`; a test pins its first values.
#[derive(Clone)]
pub struct FastRng {
    words: fastrand::Rng,
}

impl FastRng {
    /// The stream of the image with this seed.
    pub fn new(seed: u64) -> Self {
        FastRng { words: fastrand::Rng::with_seed(scatter(seed)) }
    }

    /// The stream of image `index` of a run with `seed`: that of the seed `seed + index` (wrapping).
    pub fn for_image(seed: u64, index: u64) -> Self {
        Self::new(seed.wrapping_add(index))
    }

    /// Fills `out` with the next normals, two per 64-bit word. A call with an odd length drops the last word's second
    /// value, so the values depend on the lengths of the earlier calls as well as on the seed.
    pub fn randn(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let word = self.words.u64(..);
            let (cosine, sine) = normal_pair(uniform_f32((word >> 32) as u32), uniform_f32(word as u32));
            pair[0] = cosine;
            if let Some(second) = pair.get_mut(1) {
                *second = sine;
            }
        }
    }
}

impl Normals for FastRng {
    fn randn(&mut self, out: &mut [f32]) {
        FastRng::randn(self, out);
    }
}

/// The finalizer of splitmix64 (Steele, Lea and Flood, 2014): neighbouring seeds must not give neighbouring states,
/// since wyrand's state is a plain counter.
fn scatter(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The low 24 bits of `word` as a uniform in [0, 1); exact.
fn uniform_f32(word: u32) -> f32 {
    (word & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
}

/// Turns 16 uniforms into 16 normals in place: values i and i + 8 are a Box-Muller pair.
fn normal_block(block: &mut [f32; BLOCK_LEN]) {
    let (radii, angles) = block.split_at_mut(BLOCK_LEN / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        (*a, *b) = normal_pair(*a, *b);
    }
}

/// Box-Muller: uniforms `u` (radius) and `v` (angle), both in [0, 1), to two independent normals (cosine, sine).
fn normal_pair(u: f32, v: f32) -> (f32, f32) {
    let radius = (-2.0 * log(1.0 - u)).sqrt();
    let (sine, cosine) = sin_cos(std::f32::consts::TAU * v);
    // PyTorch ends with `n * std + mean`; with std 1 and mean 0 all that is left of it is -0 -> +0.
    (radius * cosine + 0.0, radius * sine + 0.0)
}

// The two functions below are the single-precision `logf` and `sincosf` of Moshier's Cephes library
// (https://www.netlib.org/cephes/), in the order of operations of PyTorch's avx_mathfun.h. Where `mul_add` stands, the
// compiler of PyTorch's binaries contracts a product and a sum; where a product and a sum stand apart, it does not.
// Each of those choices changes the last bit of some value, and tests/ops/rng.rs holds them all to PyTorch's output.

/// Natural logarithm of `x`, a normal number in (0, 1].
fn log(x: f32) -> f32 {
    // x = m 2^e with m in [0.5, 1), then m in [sqrt(0.5), sqrt(2)) less 1.
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 126) as f32;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        e -= 1.0;
        m = (m - 1.0) + m;
    } else {
        m -= 1.0;
    }
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let z = m * m;
    let y = P[1..].iter().fold(P[0], |y, &p| y.mul_add(m, p)) * m;
    // ln 2 in two parts: the first has few enough bits that its product with e is exact.
    let y = y.mul_add(z, e * -2.121_944_4e-4) - 0.5 * z;
    (m + y) + e * 0.693_359_4
}

/// Sine and cosine of `x` in [0, 8192).
fn sin_cos(x: f32) -> (f32, f32) {
    // j is the octant of x, rounded up to even; x becomes x - j pi/4, in three parts of pi/4.
    let j = ((x * std::f32::consts::FRAC_2_PI * 2.0) as i32 + 1) & !1;
    let y = j as f32;
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_5e-4, x);
    let x = y.mul_add(-3.774_895e-8, x);

    let z = x * x;
    let cosine = 2.443_315_7e-5f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2) * z;
    let cosine = cosine.mul_add(z, -0.5 * z) + 1.0;
    let sine = (-1.951_529_6e-4f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1) * z;
    let sine = sine.mul_add(x, x);

    let (sine, cosine) = if j & 2 == 0 { (sine, cosine) } else { (cosine, sine) };
    let flip = |v: f32, negative: bool| if negative { -(v + 0.0) } else { v + 0.0 };
    (flip(sine, j & 4 != 0), flip(cosine, (j - 2) & 4 == 0))
}
