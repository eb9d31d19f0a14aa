//! Types of tensors by their names, as stable-diffusion.cpp's `--tensor-type-rules` has them.
//!
//! `PATTERN=TYPE,..`: of the rules in order, the first whose regular expression is found in a tensor's name decides. What ggml
//! stores in blocks becomes the nearest that is packed here, a step or a codebook per output channel:
//!
//! | ggml | here |
//! |---|---|
//! | `f32` | `f32` |
//! | `f16`, `bf16` | `f16` |
//! | `q4_0` `q4_1`, `q5_0` `q5_1`, `q8_0` | `mse-4`, `mse-5`, `mse-8` |
//! | `q2_K` `q3_K` `q4_K` `q5_K` `q6_K` | `kmeans-2` .. `kmeans-6` |
//!
//! As there, tensors whose rows do not fill whole blocks, and embeddings of time, classes, texts and patches, are left to
//! whatever they are without a rule.

use super::{Activations, ConfigError, LayerSpec, Weights, spec};
use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take.
const MAX_REGEX: usize = 1 << 20;
/// Parts of names of tensors that are never converted.
const UNTOUCHED: [&str; 14] = [
    "img_in.",
    "txt_in.",
    "time_in.",
    "vector_in.",
    "guidance_in.",
    "final_layer.",
    "x_embedder.",
    "t_embedder.",
    "y_embedder.",
    "pos_embed",
    "context_embedder.",
    "time_embed.",
    "label_emb.",
    "embedding",
];
/// Types, the precisions that they become, and weights in a block.
const TYPES: [(&str, &str, usize); 13] = [
    ("f32", "f32", 1),
    ("f16", "f16", 1),
    ("bf16", "f16", 1),
    ("q4_0", "mse-4", 32),
    ("q4_1", "mse-4", 32),
    ("q5_0", "mse-5", 32),
    ("q5_1", "mse-5", 32),
    ("q8_0", "mse-8", 32),
    ("q2_k", "kmeans-2", 256),
    ("q3_k", "kmeans-3", 256),
    ("q4_k", "kmeans-4", 256),
    ("q5_k", "kmeans-5", 256),
    ("q6_k", "kmeans-6", 256),
];

/// Rules in order.
#[derive(Clone, Debug)]
pub struct TensorTypes {
    rules: Vec<TypeRule>,
}

#[derive(Clone, Debug)]
struct TypeRule {
    key: String,
    pattern: Regex,
    weights: Weights,
    block: usize,
}

impl TensorTypes {
    /// Reads `PATTERN=TYPE,..`.
    ///
    /// # Errors
    /// For a rule without a type, a pattern that is none, or a type that has no counterpart.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let rules = text.split(',').filter(|rule| !rule.is_empty()).map(rule).collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Err(fault(text, "PATTERN=TYPE is expected"));
        }
        Ok(TensorTypes { rules })
    }

    /// What the tensor of a layer becomes, and the rule that says so: `names` are those that it has there, and `row` is the
    /// length of its innermost axis. With `before` its activations stay codes if they are.
    pub fn of(&self, names: &[String], row: usize, before: Option<LayerSpec>) -> Option<(&str, LayerSpec)> {
        if names.iter().any(|name| UNTOUCHED.iter().any(|part| name.contains(part))) {
            return None;
        }
        let rule = self.rules.iter().find(|rule| names.iter().any(|name| rule.pattern.is_match(name)))?;
        if !row.is_multiple_of(rule.block) {
            return None;
        }
        let coded = matches!(rule.weights, Weights::Codes { .. });
        let activations = before.map_or(Activations::Float, |spec| spec.activations);
        let activations = if coded { activations } else { Activations::Float };
        Some((&rule.key, LayerSpec { weights: rule.weights, activations }))
    }

    /// The rules that are found in none of `names`.
    pub fn idle<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        let idle = |rule: &&TypeRule| !names.iter().any(|name| rule.pattern.is_match(name));
        self.rules.iter().filter(idle).map(|rule| rule.key.as_str())
    }
}

fn rule(text: &str) -> Result<TypeRule, ConfigError> {
    let (pattern, name) = text.split_once('=').ok_or_else(|| fault(text, "PATTERN=TYPE is expected"))?;
    let known = TYPES.iter().find(|(known, ..)| *known == name.to_ascii_lowercase());
    let Some(&(_, precision, block)) = known else {
        let types = TYPES.map(|(name, ..)| name).join(", ");
        return Err(fault(text, &format!("the type must be one of {types}; ggml's others have no counterpart")));
    };
    let regex = RegexBuilder::new(pattern).size_limit(MAX_REGEX).build();
    let pattern = regex.map_err(|_| fault(text, "the pattern is no regular expression here"))?;
    let weights = spec::parse_value(precision, Activations::Float).map_err(|e| fault(text, &e.to_string()))?.weights;
    Ok(TypeRule { key: text.to_owned(), pattern, weights, block })
}

fn fault(rule: &str, reason: &str) -> ConfigError {
    let reason = format!("`{}`: {reason}", spec::shorten(rule));
    ConfigError::Syntax { origin: "--tensor-type-rules".into(), reason }
}

/// Names of a layer's weight in the files that stable-diffusion.cpp reads: those of the authors of latent diffusion for a UNet, with
/// the prefix of its network, and diffusers' own behind the name of the component. `layers` are all of the network.
pub fn tensor_names(component: &str, prefixes: &[&str], layer: &str, layers: &[&str]) -> Vec<String> {
    let own = authors_path(layer, layers).unwrap_or_else(|| layer.to_owned());
    let prefixed = prefixes.iter().map(|prefix| format!("{prefix}{own}.weight"));
    std::iter::once(format!("{component}.{layer}.weight")).chain(prefixed).collect()
}

/// The path that `openaimodel.py` gives to a layer of a UNet; none for layers of other networks.
fn authors_path(layer: &str, layers: &[&str]) -> Option<String> {
    let has = |prefix: &str| layers.iter().any(|l| l.starts_with(prefix));
    // Residual blocks on the way up, and so blocks of a level.
    let period = (0..).take_while(|i| has(&format!("up_blocks.0.resnets.{i}."))).count();
    if period == 0 {
        return None;
    }
    let parts: Vec<&str> = layer.split('.').collect();
    let number = |at: usize| parts.get(at)?.parse::<usize>().ok();
    let within = |block: String, rest: &[&str]| match rest {
        ["conv1"] => format!("{block}.in_layers.2"),
        ["time_emb_proj"] => format!("{block}.emb_layers.1"),
        ["conv2"] => format!("{block}.out_layers.3"),
        ["conv_shortcut"] => format!("{block}.skip_connection"),
        rest => format!("{block}.{}", rest.join(".")),
    };
    Some(match parts[..] {
        ["conv_in"] => "input_blocks.0.0".into(),
        ["conv_out"] => "out.2".into(),
        ["time_embedding", linear] => format!("time_embed.{}", if linear == "linear_1" { 0 } else { 2 }),
        ["add_embedding", linear] => format!("label_emb.0.{}", if linear == "linear_1" { 0 } else { 2 }),
        ["mid_block", "resnets", _, ref rest @ ..] => within(format!("middle_block.{}", 2 * number(2)?), rest),
        ["mid_block", "attentions", _, ref rest @ ..] => within("middle_block.1".into(), rest),
        ["down_blocks", _, "downsamplers", _, "conv"] => format!("input_blocks.{}.0.op", (number(1)? + 1) * period),
        ["up_blocks", level, "upsamplers", _, ref rest @ ..] => {
            let at = if has(&format!("up_blocks.{level}.attentions.")) { 2 } else { 1 };
            within(format!("output_blocks.{}.{at}", number(1)? * period + period - 1), rest)
        }
        [way @ ("down_blocks" | "up_blocks"), _, kind, _, ref rest @ ..] => {
            let (block, at) = (number(1)? * period + number(3)?, usize::from(kind != "resnets"));
            match way {
                "down_blocks" => within(format!("input_blocks.{}.{at}", block + 1), rest),
                _ => within(format!("output_blocks.{block}.{at}"), rest),
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_is_found_decides() {
        let types = TensorTypes::parse(r"^vae\.=f16,attn1.*to_q=q4_0,attn=q6_K,,input_blocks\.1\.=bf16").unwrap();
        let of = |name: &str, row| types.of(&[name.to_owned()], row, None).map(|(_, spec)| spec.to_string());
        assert_eq!(of("vae.decoder.conv_in.weight", 3).as_deref(), Some("f16"));
        assert_eq!(of("model.vae.conv_in.weight", 3), None);
        assert_eq!(of("x.attn1.to_q.weight", 64).as_deref(), Some("w4a16:mse"));
        assert_eq!(of("x.attn1.to_q.weight", 48), None, "no whole blocks: neither this rule nor a later one");
        assert_eq!(of("x.attn2.to_q.weight", 512).as_deref(), Some("w6a16:kmeans"));
        assert_eq!(of("x.attn2.to_q.weight", 320), None);
        assert_eq!(of("input_blocks.1.0.in_layers.2.weight", 3).as_deref(), Some("f16"));
        assert_eq!(of("token_embedding.attn.weight", 512), None);
        let before = LayerSpec { weights: Weights::F16, activations: Activations::Int(8) };
        let coded = types.of(&["attn".into()], 256, Some(before)).unwrap();
        assert_eq!((coded.0, coded.1.to_string()), ("attn=q6_K", "w6a8:kmeans".into()));
        let names = ["attn1.to_q".to_owned()];
        assert_eq!(types.idle(&names).collect::<Vec<_>>(), [r"^vae\.=f16", r"input_blocks\.1\.=bf16"]);
    }

    #[test]
    fn rules_that_are_none_are_refused_by_name() {
        for (text, expected) in [
            ("", "PATTERN=TYPE is expected"),
            (",,", "PATTERN=TYPE is expected"),
            ("attn", "`attn`: PATTERN=TYPE is expected"),
            ("a=q4_0,attn=iq2_xxs", "`attn=iq2_xxs`: the type must be one of f32, f16, bf16, q4_0"),
            ("attn=", "the type must be one of"),
            ("(a=q4_0", "`(a=q4_0`: the pattern is no regular expression"),
            ("(?=x)=q4_0", "the type must be one of"),
        ] {
            let error = TensorTypes::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("--tensor-type-rules: ") && error.contains(expected), "{text}: {error}");
        }
    }
}
