//! Quantizers of attention in Q-Diffusion's `ckpt.pth` (quantization.md §3.3, §3.6), each one step and one zero point.
//!
//! Three of its networks have them, under names of their own: the transformers of Stable Diffusion and the attention of DDIM's
//! network beside the projections; latent diffusion's attention in two modules, which quantizes queries and keys after each
//! was multiplied by the square root of the scale of their products.

use super::{Imported, Project};
use crate::error::Result;
use crate::source::Checkpoint;
use crate::weight::Weight;
use aquatint::error::Error;

/// The quantizers of one attention: step and zero point of queries, keys, values and probabilities, where there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImportedAttention {
    /// Of queries, keys and values.
    pub operands: [Option<[f32; 2]>; 3],
    /// The step of probabilities.
    pub softmax: Option<f32>,
}

impl Imported {
    /// The quantizers of the attention whose queries the layer of `weight` makes, of the component whose tensors are `model`;
    /// its scores are multiplied by `scale`.
    ///
    /// # Errors
    /// If one is none that codes can have.
    pub fn attention(&self, model: &Checkpoint, weight: &Weight, scale: f32) -> Result<ImportedAttention> {
        let (source, _) = model.published(weight.key());
        let layer = self.layers.get(source).and_then(|layer| layer.rsplit_once('.'));
        let Some((block, _)) = layer.filter(|_| self.project == Project::QDiffusion) else {
            return Ok(ImportedAttention::default());
        };
        let apart = format!("{block}.attention.qkv_matmul.act_quantizer_q.delta");
        let (of_scores, of_values, shrink) = match self.file.has(&apart) {
            true => (format!("{block}.attention.qkv_matmul"), format!("{block}.attention.smv_matmul"), scale.sqrt()),
            false => (block.to_owned(), block.to_owned(), 1.0),
        };
        let [q, k] = ["q", "k"].map(|name| self.quantizer(&format!("{of_scores}.act_quantizer_{name}")));
        let [v, w] = ["v", "w"].map(|name| self.quantizer(&format!("{of_values}.act_quantizer_{name}")));
        let unscaled = |found: Option<[f32; 2]>| found.map(|[step, zero]| [step / shrink, zero]);
        let softmax = w?.map(|[step, zero]| match zero {
            0.0 => Ok(step),
            _ => {
                let what = format!("{of_values}.act_quantizer_w.zero_point of {}", self.file.component());
                Err(Error::request(what, "0, since probabilities begin there", zero))
            }
        });
        Ok(ImportedAttention { operands: [unscaled(q?), unscaled(k?), v?], softmax: softmax.transpose()? })
    }

    /// Step and zero point of the quantizer called `name`, if there is one of one number.
    ///
    /// # Errors
    /// If its step is none.
    pub(super) fn quantizer(&self, name: &str) -> Result<Option<[f32; 2]>> {
        let number = |what: &str| -> Result<Option<f32>> {
            let name = format!("{name}.{what}");
            match self.file.shape(&name).map(|shape| shape.iter().product::<usize>()) {
                Some(1) => Ok(self.file.read(&name)?.first().copied()),
                _ => Ok(None),
            }
        };
        let (Some(step), zero) = (number("delta")?, number("zero_point")?.unwrap_or(0.0)) else { return Ok(None) };
        if !(step > 0.0 && step.is_finite()) {
            let what = format!("{name}.delta of {}", self.file.component());
            return Err(Error::request(what, "a positive step", step).into());
        }
        Ok(Some([step, zero]))
    }
}
