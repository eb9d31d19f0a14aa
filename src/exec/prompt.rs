//! What a prompt gives a bound program.

use super::Executor;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::program::{Embedding, InputKind, Op, Program, Rate, Tensor};

/// What a prompt gives a program: all inputs of [`Rate::Prompt`] that the program declares, and no others.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptInputs<'a> {
    /// The class of each condition.
    pub class_labels: Option<&'a [u32]>,
    /// Features of the prompt's tokens, `(conditions, t, d)`.
    pub context: Option<&'a [f32]>,
    /// One vector per condition, `(conditions, d)`.
    pub pooled: Option<&'a [f32]>,
    /// Numbers beside the prompt, `(conditions, k)`.
    pub sizes: Option<&'a [f32]>,
    /// How many tokens of each prompt count, `(conditions)`; of a text encoder, of each text, `(n)`.
    pub lengths: Option<&'a [u32]>,
    /// Features of the tokens of a second context, `(conditions, t, d)`.
    pub context_2: Option<&'a [f32]>,
    /// How many of them count, `(conditions)`.
    pub lengths_2: Option<&'a [u32]>,
}

impl<B: Backend> Executor<'_, B> {
    /// Sets all that a prompt gives and computes what depends on nothing else.
    ///
    /// # Errors
    /// [`Error::Request`] if an input is missing or the program has no such input, if a length is not that of the
    /// input, if a class has no row in the table of classes, or if more tokens count than there are. Nothing has changed then.
    pub fn set_prompt(&mut self, prompt: &PromptInputs<'_>) -> Result<()> {
        let floats = [
            (InputKind::Context, prompt.context),
            (InputKind::Pooled, prompt.pooled),
            (InputKind::Sizes, prompt.sizes),
            (InputKind::Context2, prompt.context_2),
        ];
        let lengths = [(InputKind::Lengths, prompt.lengths), (InputKind::Lengths2, prompt.lengths_2)];
        let labels_at = self.place(InputKind::ClassLabels, prompt.class_labels.map(<[u32]>::len))?;
        self.check_rows(InputKind::ClassLabels, prompt.class_labels.unwrap_or_default())?;
        let mut lengths_at = [0; 2];
        for (at, (kind, lengths)) in lengths_at.iter_mut().zip(lengths) {
            *at = self.place(kind, lengths.map(<[u32]>::len))?;
            self.check_rows(kind, lengths.unwrap_or_default())?;
            self.check_lengths(kind, lengths.unwrap_or_default())?;
        }
        let mut places = [0; 4];
        for (place, (kind, data)) in places.iter_mut().zip(floats) {
            *place = self.place(kind, data.map(<[f32]>::len))?;
        }
        if let Some(labels) = prompt.class_labels {
            self.backend.write_u32(&mut self.arena, labels_at, labels)?;
        }
        for (at, (_, lengths)) in lengths_at.into_iter().zip(lengths) {
            if let Some(lengths) = lengths {
                self.backend.write_u32(&mut self.arena, at, lengths)?;
            }
        }
        for (at, (_, data)) in places.into_iter().zip(floats) {
            if let Some(data) = data {
                self.backend.write_f32(&mut self.arena, at, data)?;
            }
        }
        self.run(Rate::Prompt);
        self.filled = None;
        Ok(())
    }

    /// [`set_prompt`](Self::set_prompt) of a program for which the class of each condition is all of it.
    pub fn set_class_labels(&mut self, labels: &[u32]) -> Result<()> {
        self.set_prompt(&PromptInputs { class_labels: Some(labels), ..Default::default() })
    }

    /// Sets the tokens of a text encoder, `(n, t)`.
    ///
    /// # Errors
    /// [`Error::Request`] if the program takes no tokens or another number of them, or if one has no row in a table
    /// that it indexes. Nothing has changed then.
    pub fn set_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        let at = self.place(InputKind::Tokens, Some(tokens.len()))?;
        self.check_rows(InputKind::Tokens, tokens)?;
        self.backend.write_u32(&mut self.arena, at, tokens)
    }

    /// The first byte of the input of this kind, if it takes `len` numbers; without an input, `len` must be none.
    pub(super) fn place(&self, kind: InputKind, len: Option<usize>) -> Result<usize> {
        let Some(value) = self.program.input(kind) else {
            return match len {
                None => Ok(0),
                Some(len) => Err(Error::request(kind.name(), "none, as the model takes none", len)),
            };
        };
        let input = value.0 as usize;
        let axes = self.program.inputs[input].dims.iter().map(|&d| self.plan.binding.dims.resolve(d));
        let wanted: usize = axes.product();
        match len {
            Some(len) if len == wanted => Ok(self.plan.inputs[input].at),
            Some(len) => Err(Error::request(kind.name(), wanted, len)),
            None => Err(Error::request(kind.name(), wanted, "none")),
        }
    }

    /// Checks that no more tokens count than the program takes, if it takes a text.
    fn check_lengths(&self, kind: InputKind, lengths: &[u32]) -> Result<()> {
        let dims = &self.plan.binding.dims;
        let of = |input: &InputKind| match kind {
            InputKind::Lengths2 => *input == InputKind::Context2,
            _ => matches!(input, InputKind::Tokens | InputKind::Context),
        };
        let mut texts = self.program.inputs.iter().filter(|input| of(&input.kind));
        let tokens = texts.find_map(|input| input.dims.get(1)).map_or(usize::MAX, |&dim| dims.resolve(dim));
        match lengths.iter().find(|&&n| n as usize > tokens) {
            None => Ok(()),
            Some(n) => Err(Error::request(kind.name(), format!("at most {tokens} tokens"), n)),
        }
    }

    /// Checks that each row number given for the input of this kind is one of every table that the input indexes.
    fn check_rows(&self, kind: InputKind, numbers: &[u32]) -> Result<()> {
        let rows = self.program.input(kind).map_or(0, |value| self.table_rows[value.0 as usize]);
        match numbers.iter().find(|&&n| n as usize >= rows) {
            None => Ok(()),
            Some(n) => Err(Error::request(kind.name(), format!("numbers below {rows}"), n)),
        }
    }
}

/// For each input, the rows of the smallest table that it indexes; without one, any number will do.
pub(crate) fn table_rows(program: &Program, rows: impl Fn(Tensor) -> usize) -> Vec<usize> {
    let mut least = vec![usize::MAX; program.inputs.len()];
    for op in program.ops() {
        if let Op::Embedding(Embedding { index, table }) = *op
            && let Some(least) = least.get_mut(index.0 as usize)
        {
            *least = rows(table).min(*least);
        }
    }
    least
}
