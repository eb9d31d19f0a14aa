//! Layer norms and group norms: one rule over sets of elements that share mean and variance.

use super::Tape;
use super::act::{activate, chain};
use super::array::{Array, Cotangents};
use super::linear::PerSample;
use aquatint::raw::program::{Act, Columns, GroupNorm, LayerNorm, Modulation, Tensor, Value};
use rayon::prelude::*;
use std::ops::Range;

/// What layer norms and group norms have in common: `y = act((xhat * weight + bias) * (1 + scale) + shift)`, the last two perhaps
/// absent.
pub(super) struct Norm {
    x: Value,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f32,
    scale: Option<Columns>,
    shift: Option<Columns>,
    act: Act,
    /// Equal parts of a row that are rows of their own.
    parts: usize,
    /// Groups of channels that share statistics over all pixels of a sample; in a layer norm each row has its own.
    groups: Option<usize>,
    /// Whether no mean is taken off.
    rms: bool,
}

/// Sets of elements of a sample.
#[derive(Clone, Copy)]
struct Sets {
    rows: usize,
    cols: usize,
    groups: Option<usize>,
    rms: bool,
}

impl Sets {
    fn len(&self) -> usize {
        self.groups.unwrap_or(self.rows)
    }

    /// The set of every run of elements that lie side by side, and the run.
    fn runs(&self) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let Sets { rows, cols, groups, .. } = *self;
        let each = groups.unwrap_or(1);
        let len = cols / each;
        (0..rows * each).map(move |run| (if groups.is_some() { run % each } else { run }, run * len..(run + 1) * len))
    }

    /// Per set, the mean of what `of` gives for a run of its elements: their sum.
    fn means(&self, of: impl Fn(usize, Range<usize>) -> f64) -> Vec<f64> {
        let mut sums = vec![0f64; self.len()];
        self.runs().for_each(|(set, run)| sums[set] += of(set, run));
        let count = (self.rows * self.cols / self.len()) as f64;
        sums.into_iter().map(|sum| sum / count).collect()
    }

    /// The same of what a norm takes off: zeros if it takes off none.
    fn centres(&self, of: impl Fn(usize, Range<usize>) -> f64) -> Vec<f64> {
        if self.rms { vec![0.0; self.len()] } else { self.means(of) }
    }

    /// `(x - mean) / deviation` of a sample, and the reciprocal of each set's deviation; without means `x` over its root mean
    /// square.
    fn normalize(&self, x: &[f32], eps: f32) -> (Vec<f32>, Vec<f64>) {
        let means = self.centres(|_, run| x[run].iter().map(|&v| f64::from(v)).sum());
        let squares = self.means(|set, run| x[run].iter().map(|&v| (f64::from(v) - means[set]).powi(2)).sum());
        let inverse: Vec<f64> = squares.into_iter().map(|v| (v + f64::from(eps)).sqrt().recip()).collect();
        let mut hat = vec![0f32; x.len()];
        for (set, run) in self.runs() {
            let (mean, inverse) = (means[set], inverse[set]);
            let values = x[run.clone()].iter();
            hat[run].iter_mut().zip(values).for_each(|(hat, &v)| *hat = ((f64::from(v) - mean) * inverse) as f32);
        }
        (hat, inverse)
    }
}

/// Whether there is a rule: none for norms that make codes.
pub(super) fn has_rule(op: &LayerNorm) -> bool {
    op.quantize.is_none()
}

/// Columns of the scale and of the shift.
fn columns(modulation: Option<Modulation>) -> [Option<Columns>; 2] {
    let at = |offset: fn(&Modulation) -> u32| modulation.map(|m| Columns { value: m.value, offset: offset(&m) });
    [at(|m| m.scale), at(|m| m.shift)]
}

impl Norm {
    pub(super) fn of_layer(op: &LayerNorm) -> Self {
        let LayerNorm { x, weight, bias, eps, modulation, rms, .. } = *op;
        let [scale, shift] = columns(modulation);
        let (shift, parts) = (shift.or(op.shift), op.parts.max(1) as usize);
        Norm { x, weight, bias, eps, scale, shift, act: Act::None, parts, groups: None, rms }
    }

    pub(super) fn of_group(op: &GroupNorm) -> Self {
        let GroupNorm { x, weight, bias, eps, modulation, act, groups, .. } = *op;
        let [scale, shift] = columns(modulation);
        Norm {
            x,
            weight: Some(weight),
            bias: Some(bias),
            eps,
            scale,
            shift,
            act,
            parts: 1,
            groups: Some(groups as usize),
            rms: false,
        }
    }

    fn sets(&self, x: &Array) -> Sets {
        let (rows, cols) = (self.parts * x.rows() / x.dims[0], x.cols() / self.parts);
        Sets { rows, cols, groups: self.groups, rms: self.rms }
    }

    fn parameter<'a>(&self, tape: &Tape<'a>, tensor: Option<Tensor>, n: usize, default: f32) -> Vec<f32> {
        tensor.map_or_else(|| vec![default; n], |tensor| (tape.weights)(tensor).values.clone())
    }

    /// Scale and shift of every sample, by which (1 + scale) multiplies.
    fn modulation<'a>(&self, tape: &'a Tape, samples: usize) -> [Option<PerSample<'a>>; 2] {
        [self.scale, self.shift].map(|columns| columns.map(|columns| PerSample::new(tape, columns, samples)))
    }
}

/// The result, and what it was before its activation if it has one.
pub(super) fn forward(norm: &Norm, tape: &Tape) -> (Array, Option<Array>) {
    let x = tape.value(norm.x);
    let (sets, n) = (norm.sets(x), x.dims[0]);
    let cols = sets.cols;
    let (weight, bias) = (norm.parameter(tape, norm.weight, cols, 1.0), norm.parameter(tape, norm.bias, cols, 0.0));
    let [scale, shift] = norm.modulation(tape, n);
    let mut z = Array::zeros(&x.dims);
    let len = sets.rows * cols;
    z.values.par_chunks_mut(len).zip(x.values.par_chunks(len)).enumerate().for_each(|(sample, (z, x))| {
        let (hat, _) = sets.normalize(x, norm.eps);
        for (z, hat) in z.chunks_exact_mut(cols).zip(hat.chunks_exact(cols)) {
            for (c, (z, hat)) in z.iter_mut().zip(hat).enumerate() {
                *z = hat * weight[c] + bias[c];
            }
            if let Some(scale) = &scale {
                z.iter_mut().zip(scale.of(sample, cols)).for_each(|(z, scale)| *z *= 1.0 + scale);
            }
            if let Some(shift) = &shift {
                z.iter_mut().zip(shift.of(sample, cols)).for_each(|(z, shift)| *z += shift);
            }
        }
    });
    let before = (norm.act != Act::None).then(|| z.clone());
    activate(norm.act, &mut z.values);
    (z, before)
}

/// What one sample gives back.
struct Back {
    dx: Vec<f32>,
    /// Sums over rows of the derivative of what the weight multiplies, times that, and alone.
    weight: Vec<f64>,
    bias: Vec<f64>,
    /// The same of the modulation.
    scale: Vec<f64>,
    shift: Vec<f64>,
}

pub(super) fn backward(norm: &Norm, tape: &Tape, before: Option<&Array>, dy: Array, back: &mut Cotangents) {
    let x = tape.value(norm.x);
    let (sets, n) = (norm.sets(x), x.dims[0]);
    let cols = sets.cols;
    let mut dz = dy;
    if let Some(z) = before {
        chain(norm.act, &z.values, &mut dz.values);
    }
    let parameters = [norm.parameter(tape, norm.weight, cols, 1.0), norm.parameter(tape, norm.bias, cols, 0.0)];
    let [scale, _] = norm.modulation(tape, n);
    let len = sets.rows * cols;
    let samples: Vec<Back> = dz
        .values
        .par_chunks(len)
        .zip(x.values.par_chunks(len))
        .enumerate()
        .map(|(sample, (dz, x))| {
            let scale = scale.as_ref().map(|scale| scale.of(sample, cols));
            of_sample(&sets, (x, norm.eps), dz, [&parameters[0], &parameters[1]], scale)
        })
        .collect();
    let sums: [fn(&Back) -> &Vec<f64>; 2] = [|part| &part.scale, |part| &part.shift];
    for (columns, sums) in [norm.scale, norm.shift].into_iter().zip(sums) {
        let Some(Columns { value, offset }) = columns.filter(|columns| back.needs(columns.value)) else { continue };
        let mut d = Array::zeros(&tape.value(value).dims);
        let width = d.cols();
        for (sample, part) in samples.iter().enumerate() {
            let to = &mut d.values[sample * width + offset as usize..][..cols];
            to.iter_mut().zip(sums(part)).for_each(|(to, v)| *to = *v as f32);
        }
        back.add(value, d);
    }
    let total = |of: fn(&Back) -> &Vec<f64>| -> Vec<f32> {
        (0..cols).map(|c| samples.iter().map(|part| of(part)[c]).sum::<f64>() as f32).collect()
    };
    if let Some(weight) = norm.weight {
        back.add_tensor(weight, total(|part| &part.weight));
    }
    if let Some(bias) = norm.bias {
        back.add_tensor(bias, total(|part| &part.bias));
    }
    if back.needs(norm.x) {
        let values = samples.into_iter().flat_map(|part| part.dx).collect();
        back.add(norm.x, Array { dims: x.dims.clone(), values });
    }
}

/// The way back through one sample: `dx = (dhat - mean(dhat) - xhat mean(dhat xhat)) / deviation`, means over each set, the
/// first one only if a mean is taken off.
fn of_sample(
    sets: &Sets,
    (x, eps): (&[f32], f32),
    dz: &[f32],
    [weight, bias]: [&[f32]; 2],
    scale: Option<&[f32]>,
) -> Back {
    let cols = sets.cols;
    let (hat, inverse) = sets.normalize(x, eps);
    let zeros = || vec![0f64; cols];
    let mut back = Back { dx: Vec::new(), weight: zeros(), bias: zeros(), scale: zeros(), shift: zeros() };
    let mut dhat = dz.to_vec();
    for (dhat, hat) in dhat.chunks_exact_mut(cols).zip(hat.chunks_exact(cols)) {
        for c in 0..cols {
            let (d, affine) = (f64::from(dhat[c]), f64::from(hat[c] * weight[c] + bias[c]));
            back.scale[c] += d * affine;
            back.shift[c] += d;
            let inner = dhat[c] * scale.map_or(1.0, |scale| 1.0 + scale[c]);
            back.weight[c] += f64::from(inner) * f64::from(hat[c]);
            back.bias[c] += f64::from(inner);
            dhat[c] = inner * weight[c];
        }
    }
    let means = sets.centres(|_, run| dhat[run].iter().map(|&v| f64::from(v)).sum());
    let along = sets
        .means(|_, run| dhat[run.clone()].iter().zip(&hat[run]).map(|(&d, &hat)| f64::from(d) * f64::from(hat)).sum());
    back.dx = dhat;
    for (set, run) in sets.runs() {
        let (mean, along, inverse) = (means[set], along[set], inverse[set]);
        for (dx, &hat) in back.dx[run.clone()].iter_mut().zip(&hat[run]) {
            *dx = ((f64::from(*dx) - mean - f64::from(hat) * along) * inverse) as f32;
        }
    }
    back
}
