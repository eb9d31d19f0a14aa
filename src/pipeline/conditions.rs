//! The distinct conditions of a batch, and how they become a denoiser's inputs.

use super::prompts::{PromptFeatures, Prompts};
use crate::error::{Error, Result};
use crate::exec::PromptInputs;
use crate::format::meta::{Conditioning, SizeKind};
use crate::program::{InputKind, Program};

/// What a sample is conditioned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    None,
    /// A class.
    Class(u32),
    /// A prompt, and whether it is a negative one: numbers beside a prompt may tell both apart.
    Prompt { index: usize, negative: bool },
}

/// The distinct conditions of a batch.
#[derive(Debug)]
pub(super) struct Conditions {
    /// Each once.
    pub list: Vec<Condition>,
    /// Condition of each sample: those of the images first, then, with guidance, what it leads away from.
    pub of_sample: Vec<u32>,
}

/// What image `i` is conditioned on, and what guidance leads it away from.
fn of_image(prompts: &Prompts, i: usize, null_class: u32) -> [Condition; 2] {
    match prompts {
        Prompts::Unconditional(_) => [Condition::None; 2],
        Prompts::Classes(labels) => [Condition::Class(labels[i]), Condition::Class(null_class)],
        // Texts are planned as if all differed.
        Prompts::Texts(texts) => {
            let negative = if texts.negatives.len() > 1 { i } else { 0 };
            [Condition::Prompt { index: i, negative: false }, Condition::Prompt { index: negative, negative: true }]
        }
        Prompts::Embeddings(embeddings) => {
            let [prompt, negative] = embeddings.of_image[i];
            [
                Condition::Prompt { index: prompt, negative: false },
                Condition::Prompt { index: negative, negative: true },
            ]
        }
    }
}

impl Conditions {
    /// The conditions of `images` of `prompts`.
    pub fn new(prompts: &Prompts, images: std::ops::Range<usize>, guided: bool, null_class: u32) -> Self {
        let mut list: Vec<Condition> = Vec::new();
        let mut number = |condition: Condition| {
            let found = list.iter().position(|&c| c == condition);
            found.unwrap_or_else(|| {
                list.push(condition);
                list.len() - 1
            }) as u32
        };
        let pairs: Vec<_> = images.map(|i| of_image(prompts, i, null_class)).collect();
        let mut of_sample: Vec<u32> = pairs.iter().map(|p| number(p[0])).collect();
        if guided {
            of_sample.extend(pairs.iter().map(|p| number(p[1])));
        }
        Conditions { list, of_sample }
    }
}

/// Tokens of the longest prompt among `conditions`; 1 where there are none.
pub(super) fn tokens(conditions: &[Condition], prompts: &Prompts) -> usize {
    let of = |condition: &Condition| match (condition, prompts) {
        (Condition::Prompt { index, .. }, Prompts::Embeddings(embeddings)) => embeddings.prompts[*index].tokens(),
        _ => 1,
    };
    conditions.iter().map(of).max().unwrap_or(1)
}

/// Heights and widths in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct PixelSizes {
    /// Of the images that are made.
    pub images: [usize; 2],
    /// Of those that the model was made for.
    pub model: [usize; 2],
}

/// The number of `kind` beside a prompt.
fn size_number(kind: SizeKind, sizes: PixelSizes, negative: bool) -> f32 {
    let [height, width] = sizes.images;
    match (kind, negative) {
        (SizeKind::ModelHeight, _) => sizes.model[0] as f32,
        (SizeKind::ModelWidth, _) => sizes.model[1] as f32,
        (SizeKind::OriginalHeight | SizeKind::TargetHeight, _) => height as f32,
        (SizeKind::OriginalWidth | SizeKind::TargetWidth, _) => width as f32,
        (SizeKind::CropTop | SizeKind::CropLeft, _) => 0.0,
        (SizeKind::AspectRatio, _) => height as f32 / width as f32,
        // The defaults of diffusers' pipelines.
        (SizeKind::AestheticScore, false) => 6.0,
        (SizeKind::AestheticScore, true) => 2.5,
    }
}

/// Conditions as a denoiser's inputs.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    classes: Vec<u32>,
    context: Vec<f32>,
    lengths: Vec<u32>,
    context_2: Vec<f32>,
    lengths_2: Vec<u32>,
    pooled: Vec<f32>,
    sizes: Vec<f32>,
}

impl Inputs {
    /// The inputs for `conditions`, each a row, for images of these `sizes`; `conditioning` tells what a denoiser
    /// that reads prompts wants. Contexts are filled up with zeros to as many tokens as the longest has.
    ///
    /// # Errors
    /// [`Error::Request`] if it wants an encoder's features that are not there.
    pub fn new(
        conditions: &[Condition],
        prompts: &Prompts,
        conditioning: Option<&Conditioning>,
        sizes: PixelSizes,
    ) -> Result<Self> {
        let mut inputs = Inputs::default();
        let most = tokens(conditions, prompts);
        for condition in conditions {
            match (*condition, prompts, conditioning) {
                (Condition::Class(class), ..) => inputs.classes.push(class),
                (Condition::Prompt { index, negative }, Prompts::Embeddings(embeddings), Some(conditioning)) => {
                    inputs.push(&embeddings.prompts[index], conditioning, most)?;
                    inputs.sizes.extend(conditioning.sizes.iter().map(|&kind| size_number(kind, sizes, negative)));
                }
                _ => {}
            }
        }
        Ok(inputs)
    }

    fn push(&mut self, prompt: &PromptFeatures, conditioning: &Conditioning, most: usize) -> Result<()> {
        let encoded = |index: u32| {
            let missing = || Error::request("prompt", format!("features of text encoder {index}"), "none");
            prompt.encoders.get(index as usize).ok_or_else(missing)
        };
        let parts = conditioning.context.iter().map(|&i| encoded(i)).collect::<Result<Vec<_>>>()?;
        let rows = parts.first().map_or(0, |part| part.tokens);
        let begin = self.context.len();
        for token in 0..rows {
            for part in &parts {
                let features = part.features.len() / rows;
                self.context.extend_from_slice(&part.features[token * features..][..features]);
            }
        }
        if let Some(width) = (self.context.len() - begin).checked_div(rows) {
            self.context.resize(begin + most * width, 0.0);
        }
        self.lengths.extend(parts.first().map(|part| part.length as u32));
        if let Some(index) = conditioning.context_2 {
            let second = encoded(index)?;
            self.context_2.extend_from_slice(&second.features);
            self.lengths_2.push(second.length as u32);
        }
        if let Some(index) = conditioning.pooled {
            self.pooled.extend_from_slice(&encoded(index)?.pooled);
        }
        Ok(())
    }

    /// What `program` declares, to be set; lengths are checked there.
    pub fn for_program(&self, program: &Program) -> PromptInputs<'_> {
        let reads = |kind| program.input(kind).is_some();
        PromptInputs {
            class_labels: reads(InputKind::ClassLabels).then_some(&self.classes[..]),
            context: reads(InputKind::Context).then_some(&self.context[..]),
            pooled: reads(InputKind::Pooled).then_some(&self.pooled[..]),
            sizes: reads(InputKind::Sizes).then_some(&self.sizes[..]),
            lengths: reads(InputKind::Lengths).then_some(&self.lengths[..]),
            context_2: reads(InputKind::Context2).then_some(&self.context_2[..]),
            lengths_2: reads(InputKind::Lengths2).then_some(&self.lengths_2[..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prompts::{Embeddings, EncoderFeatures};
    use super::*;

    #[test]
    fn equal_conditions_are_one() {
        let prompts = Prompts::Classes(vec![7, 3, 7, 9]);
        let conditions = Conditions::new(&prompts, 0..3, true, 9);
        assert_eq!(conditions.list, [Condition::Class(7), Condition::Class(3), Condition::Class(9)]);
        assert_eq!(conditions.of_sample, [0, 1, 0, 2, 2, 2]);
        assert_eq!(Conditions::new(&prompts, 3..4, true, 9).of_sample, [0, 0]);
        assert_eq!(Conditions::new(&Prompts::Unconditional(2), 0..2, false, 0).of_sample, [0, 0]);
    }

    #[test]
    fn a_prompt_is_put_together_from_its_encoders() {
        let encoder = |features: &[f32], pooled: &[f32]| EncoderFeatures {
            features: features.into(),
            pooled: pooled.into(),
            ..EncoderFeatures::outline(2, 2)
        };
        let encoders = vec![encoder(&[1., 2.], &[]), encoder(&[3., 4., 5., 6.], &[7.])];
        let prompt = PromptFeatures { encoders };
        let prompts = Prompts::Embeddings(Embeddings { prompts: vec![prompt], of_image: vec![[0, 0]] });
        let sizes = vec![SizeKind::OriginalHeight, SizeKind::TargetWidth, SizeKind::AestheticScore];
        let wants = Conditioning { context: vec![0, 1], context_2: None, pooled: Some(1), sizes };
        let conditions = Conditions::new(&prompts, 0..1, true, 0);
        let inputs =
            Inputs::new(&conditions.list, &prompts, Some(&wants), PixelSizes { images: [40, 24], model: [64, 48] })
                .unwrap();
        assert_eq!(inputs.context, [[1., 3., 4., 2., 5., 6.]; 2].concat());
        assert_eq!(inputs.pooled, [7., 7.]);
        assert_eq!(inputs.sizes, [40., 24., 6., 40., 24., 2.5]);
    }
    #[test]
    fn shorter_prompts_are_filled_up_and_their_lengths_told() {
        let prompt = |features: &[f32], length: usize| {
            let outline = EncoderFeatures::outline(features.len() / 2, length);
            PromptFeatures { encoders: vec![EncoderFeatures { features: features.into(), ..outline }] }
        };
        let embeddings = |of_image| {
            let prompts =
                vec![prompt(&[1., 2., 3., 4., 5., 6.], 3), prompt(&[7., 8.], 1), prompt(&[9., 9., 0., 0.], 1)];
            Prompts::Embeddings(Embeddings { prompts, of_image })
        };
        let wants = Conditioning { context: vec![0], context_2: None, pooled: None, sizes: Vec::new() };
        let inputs = |of_image: Vec<[usize; 2]>, guided| {
            let prompts = embeddings(of_image.clone());
            let list = Conditions::new(&prompts, 0..of_image.len(), guided, 0).list;
            let inputs =
                Inputs::new(&list, &prompts, Some(&wants), PixelSizes { images: [8, 8], model: [8, 8] }).unwrap();
            (tokens(&list, &prompts), inputs.lengths, inputs.context)
        };
        let long = [1., 2., 3., 4., 5., 6.];
        assert_eq!(inputs(vec![[0, 1]], true), (3, vec![3, 1], [&long[..], &[7., 8., 0., 0., 0., 0.]].concat()));
        assert_eq!(inputs(vec![[1, 0]], false), (1, vec![1], vec![7., 8.]));
        assert_eq!(inputs(vec![[1, 2]], true), (2, vec![1, 1], vec![7., 8., 0., 0., 9., 9., 0., 0.]));
    }
}
