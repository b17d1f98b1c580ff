//! Every WGSL kernel of epl, one file each, and the table from a kernel's name to its source.
//!
//! A file is valid WGSL as it stands; tile sizes are `override` constants set by the Rust side. Where elements may be stored
//! in 16 bits, the file declares them as `Elem`, on a line of its own, [`ELEMENT`]: its 16-bit form is the same text with that
//! line for the other type, and all arithmetic is in 32 bits in both.

use std::borrow::Cow;

/// The line that declares the type in which a shader stores elements, where there is a choice.
pub const ELEMENT: &str = "alias Elem = f32;";

/// Whether a shader can store its elements in 16 bits.
pub fn has_half(source: &str) -> bool {
    source.contains(ELEMENT)
}

/// The form of a shader that stores its elements in 16 bits.
pub fn in_half(source: &str) -> String {
    format!("enable f16;\n{}", source.replace(ELEMENT, "alias Elem = f16;"))
}

/// Every module as it is handed to a driver, sorted by name: each shader, and its 16-bit form as `NAME.f16` where it has one.
pub fn modules() -> Vec<(String, Cow<'static, str>)> {
    let mut all = Vec::new();
    for &(name, source) in SHADERS {
        all.push((name.to_string(), Cow::Borrowed(source)));
        if has_half(source) {
            all.push((format!("{name}.f16"), Cow::Owned(in_half(source))));
        }
    }
    all
}

/// One row of the table: the shader's name and its source.
macro_rules! shaders {
    ($($name:literal),* $(,)?) => {
        /// `(name, source)` of every shader, sorted by name. The name is the file's name without `.wgsl`.
        pub const SHADERS: &[(&str, &str)] = &[$(($name, include_str!(concat!($name, ".wgsl")))),*];
    };
}

shaders! {
    "add",
    "add_bias",
    "add_vec4",
    "batch_norm",
    "batch_norm_combine",
    "batch_norm_eval",
    "batch_norm_eval_grad",
    "batch_norm_eval_grad_vec4",
    "batch_norm_eval_vec4",
    "batch_norm_finish",
    "batch_norm_grad_input",
    "batch_norm_grad_input_vec4",
    "batch_norm_grad_weight",
    "batch_norm_grad_weight_vec4",
    "batch_norm_stats",
    "batch_norm_stats_vec4",
    "batch_norm_vec4",
    "broadcast_scalar",
    "cast_to_half",
    "cast_to_half_vec4",
    "cast_to_single",
    "cast_to_single_vec4",
    "check_finite",
    "check_finite_finish",
    "clamp_min",
    "class_sweep_add",
    "class_sweep_finish",
    "class_sweep_gather",
    "class_sweep_margin",
    "class_sweep_norms",
    "class_sweep_target",
    "class_sweep_uniface",
    "class_update_margin",
    "class_update_sgd",
    "class_update_uniface",
    "concat_rows",
    "conv2d",
    "conv2d_depthwise",
    "conv2d_depthwise_grad_weight",
    "conv2d_direct",
    "conv2d_grad_input",
    "conv2d_grad_input_weight",
    "conv2d_grad_weight",
    "conv2d_grad_weight_direct",
    "conv2d_grad_weight_strip",
    "conv2d_grad_weight_subgroup",
    "conv2d_pad",
    "conv2d_subgroup",
    "conv2d_subgroup_strip",
    "dropout",
    "epl_update",
    "fill",
    "grad_norm",
    "grad_norm_finish",
    "image_input",
    "l2_normalize",
    "l2_normalize_grad",
    "loss_scale",
    "margin_loss",
    "margin_loss_grad",
    "matmul",
    "matmul_large",
    "matmul_register",
    "matmul_scalar",
    "matmul_subgroup",
    "moments_combine",
    "prelu",
    "prelu_grad",
    "prelu_grad_vec4",
    "prelu_vec4",
    "scale",
    "scale_by",
    "scale_rows",
    "score_clear",
    "score_histogram",
    "score_select",
    "score_select_count",
    "score_select_offsets",
    "sgd",
    "sgd_tail",
    "step_factor",
    "sum_all",
    "sum_rows",
    "target_cosine",
    "uniface_loss",
    "uniface_loss_grad",
}

/// The source of the shader called `name`, or `None` if there is none.
pub fn source(name: &str) -> Option<&'static str> {
    let index = SHADERS.binary_search_by(|(key, _)| (*key).cmp(name)).ok()?;
    SHADERS.get(index).map(|(_, source)| *source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_shader_is_found() {
        assert!(SHADERS.windows(2).all(|pair| pair[0].0 < pair[1].0), "sort the table by name");
        for (name, text) in SHADERS {
            assert_eq!(source(name), Some(*text), "{name}");
        }
        assert_eq!(source("no such shader"), None);
    }

    #[test]
    fn what_is_stored_in_16_bits_is_declared_on_a_line_of_its_own_and_used() {
        let mut halves = 0;
        for (name, text) in SHADERS {
            let lines = text.lines().filter(|line| *line == ELEMENT).count();
            assert_eq!(text.matches(ELEMENT).count(), lines, "{name}");
            assert!(lines <= 1, "{name}");
            assert_eq!(
                text.contains("Elem>"),
                lines == 1,
                "{name} has Elem without its line, or the reverse"
            );
            halves += lines;
        }
        assert_eq!(modules().len(), SHADERS.len() + halves);
        assert!(modules().is_sorted_by(|a, b| a.0 < b.0));
    }
}
