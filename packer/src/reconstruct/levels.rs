//! Levels that are learned while codes stay: scales, offsets, codebooks of floats, and biases. The output is linear in each of
//! them, so their derivatives are exact.

use crate::reverse::{Array, Cotangents};
use aquatint::raw::codec::{Grain, QuantizedMatrix, TableValues};
use aquatint::raw::program::Tensor;
use half::f16;
use rayon::prelude::*;

/// Levels of one weight, and its bias. What is learned are numbers beside 0, in units that suit each: of a scale itself, of
/// the largest entry of its table, of what the rounding of a row of inputs of size 1 makes.
pub struct Levels {
    weight: Tensor,
    dims: Vec<usize>,
    bias: Option<(Tensor, Array)>,
    matrix: QuantizedMatrix,
    /// The largest entry of the table.
    entry: f32,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    /// Of codebooks of floats; integers stay as they are.
    table: Vec<f32>,
    /// One per row where there is a bias.
    biases: Vec<f32>,
}

impl Levels {
    /// Learns the levels of `matrix`, the weight of axes `dims`, and its `bias` if it has one to itself.
    pub fn new(weight: Tensor, dims: &[usize], matrix: QuantizedMatrix, bias: Option<(Tensor, Array)>) -> Self {
        let (table, entry) = match &matrix.table {
            TableValues::I8(entries) => (0, entries.iter().map(|e| f32::from(*e).abs()).fold(0f32, f32::max)),
            TableValues::F16(entries) => (entries.len(), entries.iter().map(|e| e.to_f32().abs()).fold(0f32, f32::max)),
        };
        Levels {
            weight,
            dims: dims.to_vec(),
            entry: if entry > 0.0 { entry } else { 1.0 },
            scales: vec![0.0; matrix.rows],
            offsets: vec![0.0; matrix.rows],
            table: vec![0.0; table],
            biases: vec![0.0; if bias.is_some() { matrix.rows } else { 0 }],
            bias,
            matrix,
        }
    }

    pub(super) fn tensors(&self) -> Vec<Tensor> {
        [self.weight].into_iter().chain(self.bias.iter().map(|(tensor, _)| *tensor)).collect()
    }

    pub(super) fn parameters(&mut self) -> Vec<&mut Vec<f32>> {
        vec![&mut self.scales, &mut self.offsets, &mut self.table, &mut self.biases]
    }

    pub(super) fn begin(&self) -> Vec<(Tensor, Array)> {
        let weight = Array::new(&self.dims, super::block::dense(&self.matrix));
        [(self.weight, weight)].into_iter().chain(self.bias.clone()).collect()
    }

    /// Weight and bias with levels as they are now, tables not rounded.
    pub(super) fn current(&self) -> Vec<(Tensor, Array)> {
        let mut values = vec![0f32; self.matrix.codes.len()];
        values.par_chunks_mut(self.matrix.cols.max(1)).enumerate().for_each(|(row, values)| {
            let (scale, offset) = (self.scale(row), self.offset(row));
            let levels: Vec<f32> =
                (0..self.matrix.bits.levels()).map(|code| scale * (self.level(row, code) + offset)).collect();
            let codes = &self.matrix.codes[row * self.matrix.cols..][..self.matrix.cols];
            values.iter_mut().zip(codes).for_each(|(value, &code)| *value = levels[usize::from(code)]);
        });
        [(self.weight, Array::new(&self.dims, values))].into_iter().chain(self.moved_bias()).collect()
    }

    pub(super) fn hard(&self) -> Vec<(Tensor, Array)> {
        let weight = Array::new(&self.dims, super::block::dense(&self.finish().0));
        [(self.weight, weight)].into_iter().chain(self.moved_bias()).collect()
    }

    /// As [`parameters`](Self::parameters).
    pub(super) fn gradients(&self, back: &Cotangents) -> Vec<Vec<f32>> {
        let QuantizedMatrix { rows, cols, .. } = self.matrix;
        let levels = self.matrix.bits.levels();
        let zeros = || vec![0.0; rows * cols];
        let of_weights = back.tensor(self.weight).map_or_else(zeros, <[f32]>::to_vec);
        // Per row and code, the sum of the derivatives of the weights that have it.
        let mut by_code = vec![0f64; rows * levels];
        let by_row = by_code.par_chunks_mut(levels).zip(of_weights.par_chunks(cols.max(1)));
        by_row.zip(self.matrix.codes.par_chunks(cols.max(1))).for_each(|((sums, slopes), codes)| {
            slopes.iter().zip(codes).for_each(|(&slope, &code)| sums[usize::from(code)] += f64::from(slope));
        });
        let (mut scales, mut offsets) = (vec![0f32; rows], vec![0f32; rows]);
        let mut table = vec![0f64; self.table.len()];
        for (row, sums) in by_code.chunks_exact(levels).enumerate() {
            let (scale, offset) = (f64::from(self.scale(row)), f64::from(self.offset(row)));
            let along: f64 = sums.iter().enumerate().map(|(j, d)| d * (f64::from(self.level(row, j)) + offset)).sum();
            scales[row] = (along * f64::from(self.matrix.scale[row])) as f32;
            let unit = scale * f64::from(self.entry);
            offsets[row] = (sums.iter().sum::<f64>() * unit) as f32;
            if !table.is_empty() {
                let first = self.first_entry(row);
                table[first..first + levels].iter_mut().zip(sums).for_each(|(to, d)| *to += d * unit);
            }
        }
        let bias = self.bias.as_ref().and_then(|(tensor, _)| back.tensor(*tensor)).unwrap_or(&[]);
        let biases = (0..self.biases.len()).map(|row| bias.get(row).map_or(0.0, |d| d * self.bias_unit(row)));
        vec![scales, offsets, table.into_iter().map(|d| d as f32).collect(), biases.collect()]
    }

    /// The matrix with these levels, as the codec has it, and what the bias gains.
    pub(super) fn finish(&self) -> (QuantizedMatrix, Option<Vec<f32>>) {
        let mut matrix = self.matrix.clone();
        for row in 0..matrix.rows {
            (matrix.scale[row], matrix.offset[row]) = (self.scale(row), self.offset(row));
        }
        if let TableValues::F16(entries) = &mut matrix.table {
            for (entry, by) in entries.iter_mut().zip(&self.table) {
                *entry = f16::from_f32(entry.to_f32() + by * self.entry);
            }
        }
        let gain = |row| self.biases[row] * self.bias_unit(row);
        (matrix, self.bias.as_ref().map(|_| (0..self.biases.len()).map(gain).collect()))
    }

    fn scale(&self, row: usize) -> f32 {
        self.matrix.scale[row] * (1.0 + self.scales[row])
    }

    fn offset(&self, row: usize) -> f32 {
        self.matrix.offset[row] + self.offsets[row] * self.entry
    }

    fn first_entry(&self, row: usize) -> usize {
        if self.matrix.grain == Grain::Row { row * self.matrix.bits.levels() } else { 0 }
    }

    /// The table's entry of a code of a row.
    fn level(&self, row: usize, code: usize) -> f32 {
        let moved = self.table.get(self.first_entry(row) + code).map_or(0.0, |by| by * self.entry);
        self.matrix.entry(row, code as u8) + moved
    }

    fn bias_unit(&self, row: usize) -> f32 {
        let levels = self.matrix.bits.levels() as f32;
        self.matrix.scale[row] * self.entry / levels * (self.matrix.cols as f32).sqrt()
    }

    fn moved_bias(&self) -> Option<(Tensor, Array)> {
        let (tensor, bias) = self.bias.as_ref()?;
        let moved = bias.values.iter().enumerate().map(|(row, v)| v + self.biases[row] * self.bias_unit(row));
        Some((*tensor, Array::new(&bias.dims, moved.collect())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reverse::{Tape, Values, Wanted};
    use aquatint::raw::codec::Bits;
    use aquatint::raw::program::{Dim, Input, InputKind, Linear, Node, Op, Program, Role, Value};

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 11.0 - 1.0).collect()
    }

    /// Levels of a matrix of 3 rows and 5 inputs, a codebook per row or one for all.
    fn levels(grain: Grain, floats: bool) -> Levels {
        let (rows, cols, bits) = (3, 5, Bits::ALL[0]);
        let tables = if grain == Grain::Row { rows } else { 1 };
        let count = tables * bits.levels();
        let table = match floats {
            true => TableValues::F16(numbers(count, 1).into_iter().map(f16::from_f32).collect()),
            false => TableValues::I8(numbers(count, 1).into_iter().map(|v| (100.0 * v) as i8).collect()),
        };
        let codes = (0..rows * cols).map(|i| (i * 7 % 4) as u8).collect();
        let (scale, offset) = (vec![0.5, 0.25, 0.75], vec![0.1, -0.3, 0.2]);
        let matrix = QuantizedMatrix { bits, rows, cols, codes, table, grain, scale, offset };
        Levels::new(Tensor(0), &[rows, cols], matrix, Some((Tensor(1), Array::new(&[rows], numbers(rows, 2)))))
    }

    fn program() -> Program {
        let op = Op::Linear(Linear { bias: Some(Tensor(1)), ..Linear::default() });
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch] }];
        let nodes = vec![Node { op, path: "layer".into(), wide: false }];
        Program { role: Role::Denoiser, inputs, nodes, output: Value(1), phases: Default::default() }
    }

    /// A loss that is linear in the outputs, and the derivatives.
    fn loss(levels: &Levels) -> (f64, Vec<Vec<f32>>) {
        let (program, weights) = (program(), levels.current());
        let find = |Tensor(i): Tensor| &weights[i as usize].1;
        let inputs = Values::from([(Value(0), Array::new(&[4, 5], numbers(20, 3)))]);
        let tape = Tape::run(&program, &[0], 1, &inputs, &find).unwrap();
        let slope = numbers(12, 4);
        let y = &tape.value(Value(1)).values;
        let loss = y.iter().zip(&slope).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum();
        let wanted = Wanted { tensors: levels.tensors().into_iter().collect(), ..Wanted::default() };
        let back = tape.backward(Values::from([(Value(1), Array::new(&[4, 3], slope))]), &wanted);
        (loss, levels.gradients(&back))
    }

    #[test]
    fn derivatives_are_the_limits_of_differences() {
        for (grain, floats) in [(Grain::Row, true), (Grain::Tensor, true), (Grain::Tensor, false), (Grain::Row, false)]
        {
            let mut levels = levels(grain, floats);
            // Not where all that is learned is still 0.
            for (seed, parameters) in levels.parameters().into_iter().enumerate() {
                let learned = numbers(parameters.len(), seed + 5).into_iter().map(|v| 0.1 * v);
                parameters.iter_mut().zip(learned).for_each(|(to, v)| *to = v);
            }
            let (_, gradients) = loss(&levels);
            assert_eq!(gradients[2].is_empty(), !floats);
            for (which, gradient) in gradients.iter().enumerate() {
                for (i, &slope) in gradient.iter().enumerate() {
                    let mut at = |by: f32| {
                        levels.parameters()[which][i] += by;
                        let loss = loss(&levels).0;
                        levels.parameters()[which][i] -= by;
                        loss
                    };
                    // The loss is a polynomial of low degree in each of them.
                    let difference = (at(0.01) - at(-0.01)) / 0.02;
                    let size = gradient.iter().fold(1f32, |m, v| m.max(v.abs()));
                    assert!((difference as f32 - slope).abs() < 1e-3 * size, "{which} {i}: {difference} {slope}");
                }
            }
        }
    }

    #[test]
    fn what_is_finished_is_what_was_trained_but_for_halves() {
        for (grain, floats) in [(Grain::Row, true), (Grain::Tensor, false)] {
            let mut levels = levels(grain, floats);
            let begin = levels.begin();
            assert_eq!(levels.hard(), begin);
            for parameters in levels.parameters() {
                parameters.iter_mut().enumerate().for_each(|(i, v)| *v = 0.02 * (i as f32 - 1.0));
            }
            let (soft, hard) = (levels.current(), levels.hard());
            assert_ne!(hard[0].1, begin[0].1);
            for (soft, hard) in soft.iter().zip(&hard) {
                for (s, h) in soft.1.values.iter().zip(&hard.1.values) {
                    // An entry of a table of halves has 11 bits.
                    assert!((s - h).abs() < 1e-3, "{s} {h}");
                }
            }
            assert!(floats || soft == hard);
            let (matrix, gain) = levels.finish();
            assert_eq!(matrix.codes, levels.matrix.codes);
            let moved: Vec<f32> = numbers(3, 2).iter().zip(gain.unwrap()).map(|(bias, gain)| bias + gain).collect();
            assert_eq!(moved, hard[1].1.values);
        }
    }
}
