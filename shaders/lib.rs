//! Every WGSL kernel of epl, one file each, and the table from a kernel's name to its source.
//!
//! A file is valid WGSL as it stands; tile sizes are `override` constants set by the Rust side. Where elements may be stored
//! in 16 bits, the file declares them as `Elem`, on a line of its own, [`ELEMENT`]: its 16-bit form is the same text with that
//! line for the other type. All arithmetic is in 32 bits in both, except that cooperative matrices multiply what is stored.
//! Kernels on those declare matrices of 8 x 8; a second form of the same text has 16 x 16.

use std::borrow::Cow;

/// The line that declares the type in which a shader stores elements, where there is a choice.
pub const ELEMENT: &str = "alias Elem = f32;";

/// Whether a shader can store its elements in 16 bits.
pub fn has_half(source: &str) -> bool {
    source.contains(ELEMENT)
}

/// The line that declares rows and columns of cooperative matrices, and what their types begin with.
const MATRIX_SIDE: [&str; 2] = ["const SIDE: u32 = 8u;", "coop_mat8x8<"];

/// The same for the large ones.
const LARGE_MATRIX_SIDE: [&str; 2] = ["const SIDE: u32 = 16u;", "coop_mat16x16<"];

/// Whether a shader is on cooperative matrices.
pub fn has_matrices(source: &str) -> bool {
    source.contains("enable wgpu_cooperative_matrix;")
}

/// A form of a shader: what is made of its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Form {
    /// Whether its elements are stored in 16 bits rather than 32.
    pub half: bool,
    /// Whether its cooperative matrices are 16 x 16 rather than 8 x 8.
    pub large_matrices: bool,
}

impl Form {
    /// Every form that `source` has, as it stands first. Large matrices have 16-bit elements: no unit multiplies others.
    pub fn all(source: &str) -> Vec<Self> {
        let mut all = vec![Self::default()];
        if has_half(source) {
            all.push(Self { half: true, ..Self::default() });
            all.extend(has_matrices(source).then_some(Self { half: true, large_matrices: true }));
        }
        all
    }

    /// The text of this form of `source`.
    pub fn of(self, source: &'static str) -> Cow<'static, str> {
        let mut text = Cow::Borrowed(source);
        if self.large_matrices {
            for (small, large) in MATRIX_SIDE.into_iter().zip(LARGE_MATRIX_SIDE) {
                text = text.replace(small, large).into();
            }
        }
        if self.half {
            text = format!("enable f16;\n{}", text.replace(ELEMENT, "alias Elem = f16;")).into();
        }
        text
    }

    /// What this form of the shader `name` is called.
    pub fn name(self, name: &str) -> String {
        let half = if self.half { ".f16" } else { "" };
        let large = if self.large_matrices { ".16x16" } else { "" };
        format!("{name}{half}{large}")
    }
}

/// Every module as it is handed to a driver, sorted by name: each shader in all of its forms.
pub fn modules() -> Vec<(String, Cow<'static, str>)> {
    let forms = |&(name, source): &(&str, &'static str)| {
        Form::all(source).into_iter().map(move |form| (form.name(name), form.of(source))).collect::<Vec<_>>()
    };
    SHADERS.iter().flat_map(forms).collect()
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
    "conv2d_cooperative",
    "conv2d_depthwise",
    "conv2d_depthwise_grad_weight",
    "conv2d_direct",
    "conv2d_grad_input",
    "conv2d_grad_input_weight",
    "conv2d_grad_weight",
    "conv2d_grad_weight_cooperative",
    "conv2d_grad_weight_direct",
    "conv2d_grad_weight_strip",
    "conv2d_grad_weight_subgroup",
    "conv2d_pad",
    "conv2d_subgroup",
    "conv2d_subgroup_strip",
    "cooperative_test",
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
    "receipt",
    "roof_fma",
    "roof_matrix",
    "roof_triad",
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
    "winograd_input",
    "winograd_output",
    "winograd_weight",
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
        let mut forms = 0;
        for (name, text) in SHADERS {
            let lines = text.lines().filter(|line| *line == ELEMENT).count();
            assert_eq!(text.matches(ELEMENT).count(), lines, "{name}");
            assert!(lines <= 1, "{name}");
            assert_eq!(
                text.contains("Elem>") || text.contains("<Elem,"),
                lines == 1,
                "{name} has Elem without its line, or the reverse"
            );
            let large = MATRIX_SIDE.map(|part| text.matches(part).count());
            if has_matrices(text) {
                assert_eq!((lines, large), (1, [1, 3]), "{name}");
            } else {
                assert_eq!(large, [0, 0], "{name}");
            }
            forms += Form::all(text).len();
        }
        assert_eq!(modules().len(), forms);
        assert!(modules().is_sorted_by(|a, b| a.0 < b.0));
    }
}
