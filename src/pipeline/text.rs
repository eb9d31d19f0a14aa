//! Texts to what denoisers read of them.

use super::Pipeline;
use super::subject::{Encoded, Prompt, Subjects};
use crate::backend::{Backend, Needs};
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::format::TensorInfo;
use crate::format::meta::TextEncoderMeta;
use crate::plan::{Binding, Plan};
use crate::program::shape::infer;
use crate::program::{Dims, InputKind, Role};
use crate::text::{self, Chunks, PromptStyle, Tokenizer};

/// Programs of the text encoders, in the order of META.
const ENCODERS: [Role; 2] = [Role::TextEncoder, Role::TextEncoder2];
/// Chunks of text per pass through an encoder.
const BATCH: usize = 4;

/// Texts to make prompts of.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// What each image shows.
    pub wanted: &'a [String],
    /// What guidance leads away from: one per image, one for all, or none, which is an empty text.
    pub unwanted: &'a [String],
    /// Whether brackets and `BREAK` mean something.
    pub style: PromptStyle,
}

impl<D: AsRef<[u8]>> Pipeline<'_, D> {
    /// Checks that the text encoders are those that META tells of: it comes from another part of the file.
    pub(super) fn check_encoders(&self) -> Result<()> {
        let Some(meta) = &self.meta().pipeline.text else { return Ok(()) };
        let n = meta.encoders.len();
        if !(1..=ENCODERS.len()).contains(&n) {
            return Err(Error::request("META", format!("1 to {} text encoders", ENCODERS.len()), n));
        }
        let types: Vec<_> = self.packed.tensors().iter().map(TensorInfo::ty).collect();
        for (meta, role) in meta.encoders.iter().zip(ENCODERS) {
            let program = self.packed.program(role)?;
            let values = infer(program, &types, &shape(1).dims)?;
            let input = program.input(InputKind::Tokens).map_or(0, |value| values[value.0 as usize].len());
            let output = &values[program.output.0 as usize];
            let [tokens, features, pooled] = [meta.tokens, meta.features, meta.pooled].map(u64::from);
            let told = [tokens, tokens, features + pooled];
            let got = [input, output.rows(), output.cols()].map(|n| n as u64);
            if got != told {
                let [tokens, _, cols] = told;
                let expected = format!("{tokens} tokens to as many rows of {cols} features, as META says");
                let got = format!("{} to {} of {}", got[0], got[1], got[2]);
                return Err(Error::request(role.name(), expected, got));
            }
        }
        Ok(())
    }

    /// Encodes `texts`; gives the images' subjects, and what of them did not fit the encoders.
    ///
    /// All prompts of a request are filled up to the longest one's number of chunks.
    ///
    /// # Errors
    /// [`Error::Request`] if the model does not read texts, or there are as many negative texts as no rule explains.
    pub fn encode<B: Backend>(&self, backend: &mut B, texts: &Texts) -> Result<(Subjects, Vec<String>)> {
        let Some(meta) = &self.meta().pipeline.text else {
            return Err(Error::request(
                "prompt",
                "a model with a text encoder, or --inputs with prompt_embeds",
                "none",
            ));
        };
        let (n, negatives) = (texts.wanted.len(), texts.unwanted.len());
        if negatives > 1 && negatives != n {
            return Err(Error::request("negative prompts", format!("none, 1, or {n}: one per image"), negatives));
        }
        let mut distinct: Vec<&str> = Vec::new();
        let mut number = |text| {
            distinct.iter().position(|&t| t == text).unwrap_or_else(|| {
                distinct.push(text);
                distinct.len() - 1
            })
        };
        let unwanted = |i: usize| texts.unwanted.get(if negatives == 1 { 0 } else { i }).map_or("", String::as_str);
        let zeros = |text: &str| meta.zero_negative && text.is_empty();
        // Index of a negative prompt that is zeros: after all others.
        let of_image: Vec<[Option<usize>; 2]> = (0..n)
            .map(|i| {
                let wanted = number(&texts.wanted[i]);
                [Some(wanted), (!zeros(unwanted(i))).then(|| number(unwanted(i)))]
            })
            .collect();
        let zero = distinct.len();
        let of_image = of_image.into_iter().map(|pair| pair.map(|i| i.unwrap_or(zero))).collect();

        let (mut cuts, mut chunked) = (Vec::new(), Vec::new());
        for encoder in &meta.encoders {
            let json = self.packed.bytes(&encoder.tokenizer).ok_or_else(|| {
                Error::request("tokenizer", format!("`{}` in the file", encoder.tokenizer), "no such part")
            })?;
            let tokenizer = Tokenizer::new(json)?;
            let mut chunks = Vec::new();
            for text in &distinct {
                let made = text::encode(&tokenizer, encoder, text, texts.style)?;
                if let Some(cut) = &made.truncated
                    && !cuts.contains(cut)
                {
                    cuts.push(cut.clone());
                }
                chunks.push(made);
            }
            chunked.push(chunks);
        }
        let longest = chunked.iter().flatten().map(Chunks::len).max().unwrap_or(1);
        let mut prompts = vec![Prompt { encoded: Vec::new() }; distinct.len() + 1];
        for ((encoder, chunks), role) in meta.encoders.iter().zip(&mut chunked).zip(ENCODERS) {
            chunks.iter_mut().for_each(|c| c.pad_chunks(encoder, longest));
            for (prompt, encoded) in prompts.iter_mut().zip(self.run_encoder(backend, role, encoder, chunks)?) {
                prompt.encoded.push(encoded);
            }
            let like = |len: usize| vec![0.0; len];
            let features = like(longest * encoder.tokens as usize * encoder.features as usize);
            prompts[zero].encoded.push(Encoded { features, pooled: like(encoder.pooled as usize) });
        }
        let tokens = longest * meta.encoders.first().map_or(1, |e| e.tokens as usize);
        Ok((Subjects::Prompts { prompts, tokens, of_image }, cuts))
    }

    /// Features of `texts`, each of equally many chunks.
    fn run_encoder<B: Backend>(
        &self,
        backend: &mut B,
        role: Role,
        meta: &TextEncoderMeta,
        texts: &[Chunks],
    ) -> Result<Vec<Encoded>> {
        let (tokens, features) = (meta.tokens as usize, meta.features as usize);
        let cols = features + meta.pooled as usize;
        let mut ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
        let rows = ids.len() / tokens;
        let batch = rows.min(BATCH);
        ids.resize(rows.next_multiple_of(batch) * tokens, meta.pad);
        let mut executor = Executor::new(backend, self.packed, role, shape(batch))?;
        let mut result = vec![0.0; ids.len() * cols];
        for (ids, result) in ids.chunks_exact(batch * tokens).zip(result.chunks_exact_mut(batch * tokens * cols)) {
            executor.set_tokens(ids)?;
            executor.call(0)?;
            executor.read_output(result)?;
        }
        let mut rows = result.chunks_exact(cols);
        let encode = |text: &Chunks| {
            let first: Vec<&[f32]> = rows.by_ref().take(text.ids.len()).collect();
            let mut encoded: Vec<f32> = first.iter().flat_map(|row| &row[..features]).copied().collect();
            let chunks = encoded.chunks_exact_mut(tokens * features).zip(text.weights.chunks_exact(tokens));
            chunks.for_each(|(chunk, weights)| text::apply_weights(chunk, features, weights));
            Encoded { features: encoded, pooled: first[text.end[0]][features..].to_vec() }
        };
        Ok(texts.iter().map(encode).collect())
    }

    /// Plans of the text encoders.
    pub(super) fn text_plans<N: Needs>(&self, needs: &N) -> Result<Vec<Plan>> {
        let encoders = self.meta().pipeline.text.as_ref().map_or(0, |t| t.encoders.len());
        let plan_encoder = |&role: &Role| Plan::of_role(needs, self.packed, role, &shape(BATCH));
        ENCODERS[..encoders.min(ENCODERS.len())].iter().map(plan_encoder).collect()
    }
}

fn shape(batch: usize) -> Binding {
    let dims = Dims { batch, conditions: 1, height: 1, width: 1, tokens: 1 };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}
