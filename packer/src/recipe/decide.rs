//! The decision about one layer.

use super::{Decision, FEW_INPUTS, Store, Treatment};
use crate::config::{Activations, Choice, Decider, Weights};
use crate::pass::{End, Site};
use crate::quantize::CodebookType;
use crate::weight::{Storage, Weight};
use aquatint::raw::codec::Bits;

/// Integer convolutions take their channels in groups of this size.
const CHANNEL_GROUP: usize = 4;
/// Bits of the weights at the ends of a network.
const END_BITS: Bits = Bits::ALL[5];

/// The decision about a layer at `site` for which the configuration makes `choice`.
pub(super) fn decide(weight: &Weight, site: Site, choice: Choice) -> Decision {
    let Choice { spec, by } = choice;
    // What others have quantized stays as they have it.
    let named = matches!(by, Decider::Entry(_)) || site.imported;
    let mut notes = Vec::new();
    let (method, mut bits) = match spec.weights {
        Weights::F32 => return plain(Store::F32, by, None),
        Weights::F16 => return plain(Store::F16, by, None),
        Weights::Codes { method, bits } => (method, bits),
    };
    if site.left && !named {
        let note = "kept at f16: the imported file leaves it in floats, and no entry names it";
        return plain(Store::F16, by, Some(note.into()));
    }
    let (_, inputs) = weight.matrix();
    if inputs <= FEW_INPUTS && !named {
        let note = format!("kept at f16: it has only {inputs} inputs per output, and no entry names it");
        return plain(Store::F16, by, Some(note));
    }
    if let Some(end) = site.end
        && bits < END_BITS
        && !named
    {
        let end = if end == End::First { "first" } else { "last" };
        notes.push(format!("{END_BITS} bits: it is the {end} layer, and no entry names it"));
        bits = END_BITS;
    }
    let mut activation_bits = match spec.activations {
        Activations::Float => None,
        Activations::Int(bits) => Some(bits),
    };
    let mut codebook = if activation_bits.is_some() { CodebookType::Int8 } else { CodebookType::F16 };
    let channels = weight.dims().last().copied().unwrap_or(0);
    if activation_bits.is_some() && weight.storage == Storage::Conv && !channels.is_multiple_of(CHANNEL_GROUP) {
        notes.push(format!("float activations: its {channels} channels are not a multiple of {CHANNEL_GROUP}"));
        (activation_bits, codebook) = (None, CodebookType::F16);
    }
    if activation_bits.is_some() && site.hoisted && !matches!(by, Decider::Entry(_)) {
        // Its codebooks stay integers: they are half as long, and floats multiply them as well.
        notes.push(
            "float activations: it depends on the timestep and no latents, so it is worked out before the steps".into(),
        );
        activation_bits = None;
    }
    let treatment = Treatment { store: Store::Codes(method, bits), activation_bits, codebook };
    Decision { treatment, by: Some(by), note: (!notes.is_empty()).then(|| notes.join("; ")) }
}

fn plain(store: Store, by: Decider, note: Option<String>) -> Decision {
    Decision { treatment: Treatment::plain(store), by: Some(by), note }
}
