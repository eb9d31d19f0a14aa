//! Grids of the denoisers' attentions, as research projects have them: of queries, keys, values and probabilities.

use super::Options;
use super::ranges::RangeSource;
use crate::error::Result;
use crate::import::{Imported, ImportedAttention};
use crate::pass::{self, AttentionGrid};
use crate::recipe::Recipe;
use crate::source::diffusers::Model;
use crate::weight::{Weight, Weights};
use aquatint::error::Error;
use aquatint::raw::program::{Attention, CurveAxis, Op, Program, QuantizeRange, Role, SoftmaxGrid, Tensor};

/// Which grids attention is put on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionBits {
    /// Bits of queries, keys and values; floats without.
    pub operands: Option<u8>,
    /// Bits of probabilities, 8 or 16; floats without.
    pub softmax: Option<u8>,
}

impl AttentionBits {
    /// Grids whose ranges are taken while running.
    fn dynamic(self) -> AttentionGrid {
        AttentionGrid {
            operands: [self.operands.map(|bits| (bits, QuantizeRange::Dynamic)); 3],
            softmax: self.softmax.map(|bits| SoftmaxGrid { bits, range: QuantizeRange::Dynamic }),
        }
    }
}

/// The grids of each attention of each of `programs`, in their order; none where everything stays in floats. Ranges are those
/// of the imported file if `options` say so, else they are taken while running.
///
/// # Errors
/// If there is no attention to round, or the imported file has no ranges of any.
pub(super) fn grids(
    options: &Options,
    imported: Option<&Imported>,
    (model, programs): (&Model, &[Program]),
    weights: &mut Weights,
    recipe: &mut Recipe,
) -> Result<Vec<Vec<AttentionGrid>>> {
    let bits = options.attention;
    if bits == AttentionBits::default() {
        return Ok(vec![Vec::new(); programs.len()]);
    }
    let subject = if bits.softmax.is_some() { "--softmax-bits" } else { "--qkv-bits" };
    let refuse = |expected: &str, got: String| Err(Error::request(subject, expected, got).into());
    if options.int8_attention {
        return refuse("no --int8-attention, which rounds attention in its own way", "both".into());
    }
    let import = match options.activation_ranges {
        Some(RangeSource::Import { symmetric }) => imported.map(|file| (file, symmetric)),
        _ => None,
    };
    if import.is_none() && bits.operands.is_some_and(|bits| !matches!(bits, 6 | 8)) {
        let expected = "6 or 8 bits of queries, keys and values; others need ranges of --act-range import";
        return refuse(expected, bits.operands.unwrap_or(0).to_string());
    }
    let (mut all, mut fixed, mut free) = (Vec::new(), Fixed { import, made: Vec::new() }, 0);
    for program in programs {
        let mut of_program = Vec::new();
        let denoiser = matches!(program.role, Role::Denoiser | Role::Refiner);
        for node in program.nodes.iter().filter(|_| denoiser) {
            let Op::Attention(op) = &node.op else { continue };
            let grid = fixed.apply(bits.dynamic(), (op, program), model, weights)?;
            free += grid.operands.iter().flatten().filter(|(_, range)| *range == QuantizeRange::Dynamic).count();
            free += usize::from(grid.softmax.is_some_and(|grid| grid.range == QuantizeRange::Dynamic));
            of_program.push(grid);
        }
        all.push(of_program);
    }
    if all.iter().all(Vec::is_empty) {
        return refuse("a denoiser with attention", "none".into());
    }
    match (import, fixed.made.len()) {
        (Some((file, _)), 0) => {
            return refuse("--act-range import of a file with act_quantizer_q.delta of attention", file.describe());
        }
        (Some(_), _) if free > 0 => {
            let note = "quantizers of attention are not in the imported file: their ranges are taken while running";
            recipe.notes.push(format!("{free} {note}"));
        }
        (None, _) if options.activation_ranges.is_some_and(|ranges| ranges != RangeSource::Dynamic) => {
            let note = "ranges of attention are taken while running: a calibration looks at inputs of layers alone";
            recipe.notes.push(note.into());
        }
        _ => {}
    }
    recipe.extend(weights.len());
    Ok(all)
}

/// Ranges from the imported file.
struct Fixed<'a> {
    /// The file, and whether its quantizers count from the middle of the codes, if somebody says.
    import: Option<(&'a Imported, Option<bool>)>,
    /// By component, what curves there are. Equal ones are one tensor.
    made: Vec<(&'static str, [f32; 2], Tensor)>,
}

impl Fixed<'_> {
    /// `grid` with the ranges that the file has of the attention `op` of `program`.
    fn apply(
        &mut self,
        mut grid: AttentionGrid,
        (op, program): (&Attention, &Program),
        model: &Model,
        weights: &mut Weights,
    ) -> Result<AttentionGrid> {
        let Some((file, symmetric)) = self.import else { return Ok(grid) };
        let made_by = program.node_of(op.q).and_then(|node| pass::product(&program.nodes[node].op));
        let Some(weight) = made_by.map(|(tensor, ..)| &weights[tensor]).filter(|weight| !weight.is_made()) else {
            return Ok(grid);
        };
        let own = &model.component(weight.component).weights;
        let ImportedAttention { operands, softmax } = file.attention(own, weight, op.scale)?;
        let (component, block) = (weight.component, block(weight));
        for ((wanted, found), name) in grid.operands.iter_mut().zip(operands).zip(["q", "k", "v"]) {
            let (Some((bits, range)), Some([step, zero])) = (wanted, found) else { continue };
            let zero = if symmetric == Some(true) { f32::from(1u16 << (*bits - 1)) } else { zero };
            *range = self.curve(component, format!("{block}.{name}_range"), [step, zero], weights);
        }
        if let (Some(wanted), Some(step)) = (&mut grid.softmax, softmax) {
            wanted.range = self.curve(component, format!("{block}.softmax_range"), [step, 0.0], weights);
        }
        Ok(grid)
    }

    fn curve(&mut self, component: &'static str, key: String, point: [f32; 2], weights: &mut Weights) -> QuantizeRange {
        let known = self.made.iter().find(|(of, other, _)| *of == component && *other == point).map(|(.., t)| *t);
        let tensor = known.unwrap_or_else(|| {
            let [step, zero] = point;
            let tensor = weights.make(component, key, &[1, 3], vec![0.0, step, zero]);
            self.made.push((component, point, tensor));
            tensor
        });
        QuantizeRange::curve(tensor, CurveAxis::StepFraction)
    }
}

/// The module path of the attention whose queries `weight` makes.
fn block(weight: &Weight) -> String {
    let layer = weight.layer_in_file();
    layer.rsplit_once('.').map_or(layer.clone(), |(block, _)| block.to_owned())
}
