//! What is known of layers before they are trained, and what is said of them afterwards.

use super::file::{Layer, LayerRecord};
use super::run::Work;
use super::trainee::Trainee;
use super::{Learned, Levels, outcome};
use crate::emit::CodedLayer;
use crate::error::Result;
use crate::quantize::{Calibrated, FeedbackOptions, Moments, quantize, quantize_calibrated};
use crate::reverse::Array;
use aquatint::error::Error;
use aquatint::raw::codec::{QuantizedMatrix, TableValues};
use aquatint::raw::program::Tensor;

/// What is known of a layer before it is trained.
pub(super) struct Known {
    pub(super) weight: Array,
    pub(super) nearest: QuantizedMatrix,
    pub(super) moments: Option<Moments>,
    /// What packing with a calibration makes of it.
    pub(super) calibrated: Option<Calibrated>,
}

impl Known {
    /// The levels between which it is rounded: as packing with a calibration has them, a published rule's where it says so.
    pub(super) fn grid(&self) -> QuantizedMatrix {
        self.calibrated.as_ref().map_or(&self.nearest, |calibrated| &calibrated.matrix).clone()
    }
}

impl Work<'_> {
    /// What is known of a layer.
    ///
    /// # Errors
    /// If the calibration is damaged.
    pub(super) fn known(&self, tensor: Tensor) -> Result<Known> {
        let CodedLayer { name, method, bits, codebook, half, .. } = &self.coded[&tensor];
        let weight = self.network.array(tensor)?;
        let rows = weight.dims[0];
        let cols = weight.values.len() / rows;
        let values = &weight.values;
        let nearest = quantize(values, rows, cols, *method, *bits, *codebook);
        let moments = match half {
            Some(half) => self.calibration.moments(&half.whole)?.map(|all| all.part(half.inputs.clone(), half.of)),
            None => self.calibration.moments(name)?,
        };
        let options = FeedbackOptions::default();
        let chosen = moments
            .as_ref()
            .map(|moments| quantize_calibrated(values, rows, cols, *method, *bits, *codebook, moments, &options));
        let misfit = |fault| Error::request(format!("--calib for {name}"), "moments of its inputs", fault);
        let calibrated = chosen.transpose().map_err(misfit)?;
        Ok(Known { nearest, moments, calibrated, weight })
    }

    /// A layer ready to be trained in its block, and what its bias has gained before.
    ///
    /// # Errors
    /// If its bias cannot be read.
    pub(super) fn trainee(&self, tensor: Tensor, known: &Known) -> Result<(Trainee, Option<Vec<f32>>)> {
        if self.settings.learned == Learned::Rounding {
            return Ok((Trainee::rounding(tensor, &known.weight, known.grid()), None));
        }
        let (matrix, gain) = self.chosen(tensor, known);
        let bias = match self.network.bias_of(tensor) {
            None => None,
            Some(bias) => {
                let mut array = self.network.array(bias)?;
                array.values.iter_mut().zip(gain.iter().flatten()).for_each(|(bias, gain)| *bias += gain);
                Some((bias, array))
            }
        };
        Ok((Trainee::Levels(Levels::new(tensor, &known.weight.dims, matrix, bias)), gain))
    }

    /// What packing with the calibration makes of a layer, and what its bias gains.
    pub(super) fn chosen(&self, tensor: Tensor, known: &Known) -> (QuantizedMatrix, Option<Vec<f32>>) {
        // Codes are chosen for what is left when the mean error is in the bias.
        match (&known.calibrated, self.network.bias_of(tensor)) {
            (Some(chosen), Some(_)) => (chosen.matrix.clone(), Some(chosen.bias.iter().map(|&v| v as f32).collect())),
            _ => (known.nearest.clone(), None),
        }
    }

    /// A layer with what there is to say of it.
    pub(super) fn finished(
        &self,
        tensor: Tensor,
        known: &Known,
        matrix: QuantizedMatrix,
        bias: Option<Vec<f32>>,
    ) -> Layer {
        let CodedLayer { name, method, bits, .. } = &self.coded[&tensor];
        let (table, int8) = match &matrix.table {
            TableValues::I8(entries) => (entries.len(), true),
            TableValues::F16(entries) => (entries.len(), false),
        };
        let errors = known.moments.as_ref().and_then(|moments| {
            outcome::output_errors(&known.weight.values, (&matrix, bias.as_deref()), &known.nearest, moments)
        });
        let record = LayerRecord {
            name: name.clone(),
            method: format!("{method}-{bits}"),
            bits: u32::from(bits.get()),
            rows: matrix.rows,
            cols: matrix.cols,
            tables: table / bits.levels(),
            int8,
            biased: bias.is_some(),
            output_error: errors.map(|[error, _]| error),
            nearest_output_error: errors.map(|[_, nearest]| nearest),
            activations: None,
        };
        Layer { record, matrix, bias, activations: None }
    }
}
