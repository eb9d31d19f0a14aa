//! Weights and pictures that are formulas of their names and places; ../fixtures/formula.py has the same in Python.

use aquatint::Result;
use aquatint_evaluation::network::Weights;

/// The output function of splitmix64 on the state that number `n` leaves.
fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `count` numbers in 0..1 for `name`, multiples of 2^-24.
pub fn uniform(name: &str, count: usize) -> Vec<f64> {
    let fnv = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let seed = scatter(name.bytes().fold(0xCBF2_9CE4_8422_2325, fnv));
    (0..count as u64).map(|i| (scatter(seed.wrapping_add(i)) >> 40) as f64 / (1 << 24) as f64).collect()
}

/// All tensors there are, whatever they are called; but for those whose names end so, of which it says that it has none.
pub struct Formula(pub &'static [&'static str]);

impl Weights for Formula {
    fn has(&self, name: &str) -> bool {
        !self.0.iter().any(|end| name.ends_with(end))
    }

    fn shaped(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let kind = name.rsplit('.').next().expect("a name");
        let fan: usize = dims[1..].iter().product();
        let value = |u: f64| match kind {
            _ if name.starts_with("lin") => u * 0.1,
            "running_var" => u + 0.5,
            "weight" if dims.len() == 1 => u + 0.5,
            _ if dims.len() > 1 => (u - 0.5) * 2.0 * (6.0 / fan as f64).sqrt(),
            _ => (u - 0.5) * 0.2,
        };
        Ok(uniform(name, dims.iter().product()).into_iter().map(|u| value(u) as f32).collect())
    }
}

/// A picture `(height, width, 3)` of bytes, in blocks of one colour.
pub fn picture(name: &str, [height, width]: [usize; 2], block: usize) -> Vec<f32> {
    let colours = uniform(name, height * width * 3);
    let colour = |at: usize| {
        let (row, column, channel) = (at / 3 / width / block, at / 3 % width / block, at % 3);
        (colours[(row * width + column) * 3 + channel] * 256.0).floor() as f32
    };
    (0..height * width * 3).map(colour).collect()
}
