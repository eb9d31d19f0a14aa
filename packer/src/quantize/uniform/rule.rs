//! How published projects choose the step and zero point of a row.

use super::Affine;
use aquatint::raw::codec::Bits;

/// A project's rule for the uniform levels of an output channel (quantization.md §1.1, §3.1, §4.1, §6). `b` are bits,
/// and codes run from 0 to `2^b - 1` where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `mse`: Qua2SeDiMo's `init_mse`. The range of the weights, shrunk by 0, 10, ... 90 %, whichever is best; in f32.
    Mse,
    /// `mse_f16`: the same with every operation rounded to f16, as its code runs on f16 weights. Small errors underflow
    /// there and other ranges win.
    MseHalf,
    /// `mse_80`: Q-Diffusion's `mse`, the range shrunk by 0, 1, ... 79 %.
    Mse80,
    /// `max`: Q-Diffusion's `max`: the step from the range as it is, the zero point from a range that holds 0. Weights that
    /// are all of one sign are cut off, as there.
    Max,
    /// `max_scale`: Q-Diffusion's `max_scale`: as `max`, with the minimum times `(b + 2) / 8` for the zero point alone, as
    /// there.
    MaxScale,
    /// `min_max`: ViDiT-Q's, a range that holds 0.
    MinMax,
    /// `sym_max`: the course project's symmetric `max`: codes from `1 - 2^(b-1)` to `2^(b-1) - 1`, no zero point.
    SymMax,
    /// `sym_max_scale`: as `sym_max`, the largest weight times `(b + 2) / 8`.
    SymMaxScale,
    /// `sym_mse`: as `sym_max`, with the largest weight shrunk by 0, 1, ... 29 %, whichever is best.
    SymMse,
}

impl Rule {
    /// All rules.
    pub const ALL: [Rule; 9] = [
        Rule::Mse,
        Rule::MseHalf,
        Rule::Mse80,
        Rule::Max,
        Rule::MaxScale,
        Rule::MinMax,
        Rule::SymMax,
        Rule::SymMaxScale,
        Rule::SymMse,
    ];

    /// The name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Mse => "mse",
            Rule::MseHalf => "mse_f16",
            Rule::Mse80 => "mse_80",
            Rule::Max => "max",
            Rule::MaxScale => "max_scale",
            Rule::MinMax => "min_max",
            Rule::SymMax => "sym_max",
            Rule::SymMaxScale => "sym_max_scale",
            Rule::SymMse => "sym_mse",
        }
    }

    /// Whether zero is a level of every row and needs no zero point.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Rule::SymMax | Rule::SymMaxScale | Rule::SymMse)
    }

    /// How many maps are tried.
    pub(super) fn candidates(self) -> u16 {
        match self {
            Rule::Mse | Rule::MseHalf => 10,
            Rule::Mse80 => 80,
            Rule::SymMse => 30,
            Rule::Max | Rule::MaxScale | Rule::MinMax | Rule::SymMax | Rule::SymMaxScale => 1,
        }
    }

    /// Map `i` for weights from `min` to `max`, wider maps first; `None` if it has no step.
    pub(super) fn candidate(self, i: u16, min: f32, max: f32, bits: Bits) -> Option<Affine> {
        let shrink = |step: f64| (1.0 - step * f64::from(i)) as f32;
        let top = (bits.levels() - 1) as f32;
        let eased = f32::from(bits.get() + 2) / 8.0;
        // In f64, as Python's numbers are there.
        let raw = |eased: f32| {
            let step = (f64::from(max) - f64::from(min)) / f64::from(top);
            let zero = (-f64::from(min.min(0.0)) * f64::from(eased) / step).round_ties_even();
            Affine::new(step as f32, zero as f32, (0.0, top), (min, max))
        };
        let symmetric = |shrink: f32| {
            let half = (bits.levels() / 2) as f32;
            let step = shrink * max.abs().max(min.abs()) / (half - 1.0);
            Affine::new(step, half, (1.0, top), (min, max))
        };
        match self {
            Rule::Mse | Rule::MseHalf => Affine::over(min, max, shrink(0.1), bits),
            Rule::Mse80 => Affine::over(min, max, shrink(0.01), bits),
            Rule::Max => raw(1.0),
            Rule::MaxScale => raw(eased),
            Rule::MinMax => Affine::over(min.min(0.0), max.max(0.0), 1.0, bits),
            Rule::SymMax => symmetric(1.0),
            Rule::SymMaxScale => symmetric(eased),
            Rule::SymMse => symmetric(shrink(0.01)),
        }
    }
}
