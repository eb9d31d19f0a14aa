//! What images show: classes, prompts, or whatever the model makes; and the distinct conditions of a batch.

use crate::error::{Error, Result};
use crate::exec::PromptInputs;
use crate::format::meta::{Conditioning, SizeKind};
use crate::program::{InputKind, Program};

/// A prompt as one text encoder tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// `(tokens, features)`.
    pub features: Vec<f32>,
    /// The vector of the whole text; empty if the encoder has none.
    pub pooled: Vec<f32>,
}

/// A prompt as all text encoders tell it, in the order of META.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// One entry per text encoder.
    pub encoded: Vec<Encoded>,
}

/// What each image shows; its length is the number of images.
#[derive(Clone, Debug, PartialEq)]
pub enum Subjects {
    /// Whatever the model makes: so many images.
    Any(usize),
    /// A class per image.
    Classes(Vec<u32>),
    /// Prompts, all of equally many tokens.
    Prompts {
        /// Distinct prompts.
        prompts: Vec<Prompt>,
        /// Tokens of each.
        tokens: usize,
        /// Per image: index of what is wanted and of what is not.
        of_image: Vec<[usize; 2]>,
    },
}

impl Subjects {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Subjects::Any(n) => *n,
            Subjects::Classes(labels) => labels.len(),
            Subjects::Prompts { of_image, .. } => of_image.len(),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of each image; empty if images have none.
    pub fn classes(&self) -> &[u32] {
        if let Subjects::Classes(labels) = self { labels } else { &[] }
    }

    /// Tokens of a prompt; 1 where there are none.
    pub fn tokens(&self) -> usize {
        if let Subjects::Prompts { tokens, .. } = self { *tokens } else { 1 }
    }

    /// What image `i` shows, and what guidance leads away from.
    fn of_image(&self, i: usize, null_class: u32) -> [Condition; 2] {
        match self {
            Subjects::Any(_) => [Condition::Any; 2],
            Subjects::Classes(labels) => [Condition::Class(labels[i]), Condition::Class(null_class)],
            Subjects::Prompts { of_image, .. } => {
                let [wanted, unwanted] = of_image[i];
                [Condition::Prompt(wanted, true), Condition::Prompt(unwanted, false)]
            }
        }
    }
}

/// What a sample is conditioned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nothing.
    Any,
    /// A class.
    Class(u32),
    /// A prompt, and whether it is wanted: numbers beside a prompt may tell both apart.
    Prompt(usize, bool),
}

/// The distinct conditions of a batch.
#[derive(Debug)]
pub(super) struct Conditions {
    /// Each once.
    pub list: Vec<Condition>,
    /// Condition of each sample: those of the images first, then, with guidance, what it leads away from.
    pub of_sample: Vec<u32>,
}

impl Conditions {
    /// The conditions of `images` of `subjects`.
    pub fn new(subjects: &Subjects, images: std::ops::Range<usize>, guided: bool, null_class: u32) -> Self {
        let mut list: Vec<Condition> = Vec::new();
        let mut number = |condition: Condition| {
            let found = list.iter().position(|&c| c == condition);
            found.unwrap_or_else(|| {
                list.push(condition);
                list.len() - 1
            }) as u32
        };
        let pairs: Vec<_> = images.map(|i| subjects.of_image(i, null_class)).collect();
        let mut of_sample: Vec<u32> = pairs.iter().map(|p| number(p[0])).collect();
        if guided {
            of_sample.extend(pairs.iter().map(|p| number(p[1])));
        }
        Conditions { list, of_sample }
    }
}

/// The number of `kind` beside a prompt for a picture of this height and width in pixels.
fn size_number(kind: SizeKind, [height, width]: [usize; 2], wanted: bool) -> f32 {
    match (kind, wanted) {
        (SizeKind::OriginalHeight | SizeKind::TargetHeight, _) => height as f32,
        (SizeKind::OriginalWidth | SizeKind::TargetWidth, _) => width as f32,
        (SizeKind::CropTop | SizeKind::CropLeft, _) => 0.0,
        // The defaults of diffusers' pipelines.
        (SizeKind::AestheticScore, true) => 6.0,
        (SizeKind::AestheticScore, false) => 2.5,
    }
}

/// Conditions as a denoiser's inputs.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    classes: Vec<u32>,
    context: Vec<f32>,
    pooled: Vec<f32>,
    sizes: Vec<f32>,
}

impl Inputs {
    /// The inputs for `conditions`, each a row, for pictures of `size` in pixels; `conditioning` tells what a denoiser
    /// that reads prompts wants.
    ///
    /// # Errors
    /// [`Error::Request`] if it reads prompts and there are none, or wants an encoder's features that are not there.
    pub fn new(
        conditions: &[Condition],
        subjects: &Subjects,
        conditioning: Option<&Conditioning>,
        size: [usize; 2],
    ) -> Result<Self> {
        let mut inputs = Inputs::default();
        for condition in conditions {
            match (*condition, subjects, conditioning) {
                (Condition::Class(class), ..) => inputs.classes.push(class),
                (Condition::Prompt(index, wanted), Subjects::Prompts { prompts, tokens, .. }, Some(conditioning)) => {
                    inputs.push(&prompts[index], *tokens, conditioning)?;
                    inputs.sizes.extend(conditioning.sizes.iter().map(|&kind| size_number(kind, size, wanted)));
                }
                _ => {}
            }
        }
        Ok(inputs)
    }

    fn push(&mut self, prompt: &Prompt, tokens: usize, conditioning: &Conditioning) -> Result<()> {
        let encoded = |index: u32| {
            let missing = || Error::request("prompt", format!("features of text encoder {index}"), "none");
            prompt.encoded.get(index as usize).ok_or_else(missing)
        };
        let parts = conditioning.context.iter().map(|&i| encoded(i)).collect::<Result<Vec<_>>>()?;
        for token in 0..tokens {
            for part in &parts {
                let features = part.features.len() / tokens;
                self.context.extend_from_slice(&part.features[token * features..][..features]);
            }
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_conditions_are_one() {
        let subjects = Subjects::Classes(vec![7, 3, 7, 9]);
        let conditions = Conditions::new(&subjects, 0..3, true, 9);
        assert_eq!(conditions.list, [Condition::Class(7), Condition::Class(3), Condition::Class(9)]);
        assert_eq!(conditions.of_sample, [0, 1, 0, 2, 2, 2]);
        assert_eq!(Conditions::new(&subjects, 3..4, true, 9).of_sample, [0, 0]);
        assert_eq!(Conditions::new(&Subjects::Any(2), 0..2, false, 0).of_sample, [0, 0]);
    }

    #[test]
    fn a_prompt_is_put_together_from_its_encoders() {
        let encoded = |features: &[f32], pooled: &[f32]| Encoded { features: features.into(), pooled: pooled.into() };
        let prompt = Prompt { encoded: vec![encoded(&[1., 2.], &[]), encoded(&[3., 4., 5., 6.], &[7.])] };
        let subjects = Subjects::Prompts { prompts: vec![prompt], tokens: 2, of_image: vec![[0, 0]] };
        let sizes = vec![SizeKind::OriginalHeight, SizeKind::TargetWidth, SizeKind::AestheticScore];
        let wants = Conditioning { context: vec![0, 1], pooled: Some(1), sizes };
        let conditions = Conditions::new(&subjects, 0..1, true, 0);
        let inputs = Inputs::new(&conditions.list, &subjects, Some(&wants), [40, 24]).unwrap();
        assert_eq!(inputs.context, [[1., 3., 4., 2., 5., 6.]; 2].concat());
        assert_eq!(inputs.pooled, [7., 7.]);
        assert_eq!(inputs.sizes, [40., 24., 6., 40., 24., 2.5]);
    }
}
