//! `spirv-val`: SPIRV-Tools' validator, by Vulkan's rules.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use spirv_tools::TargetEnv;
use spirv_tools::val::{Validator as _, compiled::CompiledValidator};

use crate::{Figures, Request, Tool, words};

/// The validator, for the Vulkan that has subgroups and is the least with cooperative matrices.
pub struct SpirvTools(CompiledValidator);

impl SpirvTools {
    /// The validator.
    pub fn new() -> Self {
        Self(CompiledValidator::with_env(TargetEnv::Vulkan_1_1))
    }
}

impl Tool for SpirvTools {
    fn name(&self) -> String {
        "SPIRV-Tools of the crate spirv-tools 0.13, for Vulkan 1.1".into()
    }

    fn check(&mut self, request: &Request<'_>) -> Result<std::result::Result<Figures, String>> {
        let words = without_idle_layouts(&words(request.path)?);
        Ok(self.0.validate(words, None).map(|()| Vec::new()).map_err(|error| error.to_string()))
    }
}

// Of the specification of SPIR-V, 3: instructions, storage classes and decorations.
const HEADER: usize = 5;
const TYPE_ARRAY: u32 = 28;
const TYPE_RUNTIME_ARRAY: u32 = 29;
const TYPE_STRUCT: u32 = 30;
const TYPE_POINTER: u32 = 32;
const DECORATE: u32 = 71;
const MEMBER_DECORATE: u32 = 72;
const UNIFORM: u32 = 2;
const PUSH_CONSTANT: u32 = 9;
const STORAGE_BUFFER: u32 = 12;
const ARRAY_STRIDE: u32 = 6;
const OFFSET: u32 = 35;

/// The module without the strides and offsets of types that lie in no buffer. naga writes them for arrays in workgroup memory as
/// well, where Vulkan has no place for them (VUID-StandaloneSpirv-None-10684) and drivers take no notice of them; the
/// validator would stop there and see nothing else.
fn without_idle_layouts(words: &[u32]) -> Vec<u32> {
    let mut parts: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut open = Vec::new();
    for instruction in instructions(words) {
        match *instruction {
            [first, id, ref rest @ ..] if first & 0xffff == TYPE_STRUCT => {
                parts.insert(id, rest.to_vec());
            }
            [first, id, element, ..] if [TYPE_ARRAY, TYPE_RUNTIME_ARRAY].contains(&(first & 0xffff)) => {
                parts.insert(id, vec![element]);
            }
            [first, _, class, to]
                if first & 0xffff == TYPE_POINTER
                    && [UNIFORM, PUSH_CONSTANT, STORAGE_BUFFER].contains(&class) =>
            {
                open.push(to);
            }
            _ => {}
        }
    }
    let mut in_buffers = BTreeSet::new();
    while let Some(id) = open.pop() {
        if in_buffers.insert(id) {
            open.extend(parts.get(&id).into_iter().flatten());
        }
    }
    let idle = |instruction: &[u32]| match *instruction {
        [first, id, ARRAY_STRIDE, ..] if first & 0xffff == DECORATE => !in_buffers.contains(&id),
        [first, id, _, OFFSET, ..] if first & 0xffff == MEMBER_DECORATE => !in_buffers.contains(&id),
        _ => false,
    };
    let kept = instructions(words).filter(|instruction| !idle(instruction)).flatten();
    words.iter().take(HEADER).chain(kept).copied().collect()
}

/// The instructions of a module; what follows one without a length is not looked at.
fn instructions(words: &[u32]) -> impl Iterator<Item = &[u32]> {
    let mut rest = words.get(HEADER..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = (rest.first()? >> 16) as usize;
        let (instruction, others) = rest.split_at_checked(length).filter(|_| length > 0)?;
        rest = others;
        Some(instruction)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(opcode: u32, operands: &[u32]) -> Vec<u32> {
        let length = u32::try_from(operands.len() + 1).unwrap_or_default();
        [&[length << 16 | opcode], operands].concat()
    }

    #[test]
    fn strides_in_buffers_stay_and_others_go() {
        let in_workgroup = instruction(DECORATE, &[10, ARRAY_STRIDE, 16]);
        let offset_in_workgroup = instruction(MEMBER_DECORATE, &[11, 0, OFFSET, 0]);
        let kept = [
            instruction(DECORATE, &[20, ARRAY_STRIDE, 16]),
            instruction(MEMBER_DECORATE, &[21, 0, OFFSET, 0]),
            // Not a stride: a binding.
            instruction(DECORATE, &[10, 33, 0]),
            instruction(TYPE_ARRAY, &[10, 1, 2]),
            instruction(TYPE_STRUCT, &[11, 10]),
            instruction(TYPE_POINTER, &[12, 4, 11]),
            instruction(TYPE_RUNTIME_ARRAY, &[20, 1]),
            instruction(TYPE_STRUCT, &[21, 20]),
            instruction(TYPE_POINTER, &[22, STORAGE_BUFFER, 21]),
        ]
        .concat();
        let header = [0; HEADER];
        let module = [&header[..], &in_workgroup, &offset_in_workgroup, &kept].concat();
        assert_eq!(without_idle_layouts(&module), [&header[..], &kept].concat());
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let mut tool = SpirvTools::new();
        assert!(tool.0.validate(&[0u32; 8][..], None).is_err());
        // An empty module declares no memory model.
        assert!(tool.0.validate(&[0x0723_0203, 0x0001_0300, 0, 1, 0][..], None).is_err());
        let path = std::env::temp_dir().join(format!("epl-gate-{}.spv", std::process::id()));
        std::fs::write(&path, [3u8, 2, 0x23, 7, 0, 3, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            .expect("a folder for files");
        let request = Request { path: path.to_str().expect("a path in UTF-8"), entry: "main", profile: "" };
        let answer = tool.check(&request).expect("the file is there");
        std::fs::remove_file(&path).expect("it was written");
        assert!(answer.is_err());
    }
}
