//! Every WGSL kernel of epl, one file each, and the table from a kernel's name to its source.
//!
//! A file is valid WGSL as it stands; tile sizes are `override` constants set by the Rust side.

/// One row of the table: the shader's name and its source.
macro_rules! shaders {
    ($($name:literal),* $(,)?) => {
        /// `(name, source)` of every shader, sorted by name. The name is the file's name without `.wgsl`.
        pub const SHADERS: &[(&str, &str)] = &[$(($name, include_str!(concat!($name, ".wgsl")))),*];
    };
}

shaders! {
    "add",
    "broadcast_scalar",
    "dropout",
    "fill",
    "l2_normalize",
    "l2_normalize_grad",
    "matmul",
    "matmul_large",
    "matmul_register",
    "matmul_scalar",
    "matmul_subgroup",
    "prelu",
    "prelu_grad",
    "scale",
    "sum_all",
    "sum_rows",
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
}
