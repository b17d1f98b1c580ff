//! DXC, Microsoft's compiler of HLSL, as a library: the interface is COM's, and so are its tables of functions.

use std::ffi::c_void;
use std::path::Path;
use std::ptr::{null, null_mut};

use anyhow::{Context as _, Result, bail};
use libloading::{Library, Symbol};

use crate::{Figures, Request, Tool};

/// A COM object: the address of its table of functions comes first.
type Object = *mut *const *const c_void;
type HResult = i32;

#[repr(C)]
struct Guid(u32, u16, u16, [u8; 8]);

const COMPILER: Guid = Guid(0x73e2_2d93, 0xe6ce, 0x47f3, [0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0]);
const ICOMPILER3: Guid = Guid(0x228b_4687, 0x5a6a, 0x4730, [0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54]);
const IRESULT: Guid = Guid(0x5834_6cda, 0xdde7, 0x4497, [0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59]);
const IBLOB: Guid = Guid(0x8ba5_fb08, 0x5195, 0x40e2, [0xac, 0x58, 0x0d, 0x98, 0x9c, 0x3a, 0x01, 0x02]);

/// Every interface begins with three functions; where it is not Windows', this version of the library has a destructor after
/// them, which takes two places.
const OWN: usize = if cfg!(windows) { 3 } else { 5 };
const RELEASE: usize = 2;
const COMPILE: usize = OWN;
const DISASSEMBLE: usize = OWN + 1;
const STATUS: usize = OWN;
const OUTPUT: usize = OWN + 4;
const BLOB_POINTER: usize = OWN;
const BLOB_SIZE: usize = OWN + 1;

const OUT_OBJECT: u32 = 1;
const OUT_ERRORS: u32 = 2;
const OUT_DISASSEMBLY: u32 = 5;

const UTF8: u32 = 65001;

/// As wide as C's `wchar_t`.
#[cfg(windows)]
type Wide = u16;
#[cfg(not(windows))]
type Wide = u32;

#[repr(C)]
struct Buffer {
    start: *const c_void,
    bytes: usize,
    encoding: u32,
}

impl Buffer {
    fn new(bytes: &[u8], encoding: u32) -> Self {
        Self { start: bytes.as_ptr().cast(), bytes: bytes.len(), encoding }
    }
}

/// An object that is released when it goes.
struct Owned(Object);

impl Owned {
    /// A function of the object's table.
    ///
    /// # Safety
    /// `F` must be the type of the function at `index`.
    unsafe fn function<F: Copy>(&self, index: usize) -> F {
        // SAFETY: an object begins with the address of its table, whose entry is such a function.
        unsafe { std::mem::transmute_copy(&*(*self.0).add(index)) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: this is what `Release` is.
        unsafe {
            let release: unsafe extern "system" fn(Object) -> u32 = self.function(RELEASE);
            release(self.0);
        }
    }
}

/// The compiler.
pub struct Dxc {
    // Before the library that its code is in.
    compiler: Owned,
    /// Which one it is: it does not say so itself.
    name: String,
    _library: Library,
}

impl Dxc {
    /// Loads the library, which is to be called `name`.
    ///
    /// # Errors
    /// It is not there, or is not DXC.
    pub fn load(path: &Path, name: &str) -> Result<Self> {
        type Create = unsafe extern "system" fn(*const Guid, *const Guid, *mut Object) -> HResult;
        // SAFETY: the library is DXC's, whose one entry is this function.
        unsafe {
            let library = Library::new(path).with_context(|| format!("cannot load {}", path.display()))?;
            let create: Symbol<'_, Create> = library.get(b"DxcCreateInstance\0")?;
            let mut compiler: Object = null_mut();
            let status = create(&COMPILER, &ICOMPILER3, &mut compiler);
            if status < 0 || compiler.is_null() {
                bail!("DxcCreateInstance ended with {status:#x}");
            }
            Ok(Self { compiler: Owned(compiler), name: name.to_owned(), _library: library })
        }
    }

    fn compile(&self, text: &[u8], arguments: &[&str]) -> Result<Owned> {
        type Compile = unsafe extern "system" fn(
            Object,
            *const Buffer,
            *const *const Wide,
            u32,
            *const c_void,
            *const Guid,
            *mut Object,
        ) -> HResult;
        let wide: Vec<Vec<Wide>> =
            arguments.iter().map(|argument| argument.bytes().map(Wide::from).chain([0]).collect()).collect();
        let pointers: Vec<*const Wide> = wide.iter().map(|argument| argument.as_ptr()).collect();
        let mut result: Object = null_mut();
        // SAFETY: everything that is pointed to lives until the function returns.
        let status = unsafe {
            let compile: Compile = self.compiler.function(COMPILE);
            let source = Buffer::new(text, UTF8);
            let count = u32::try_from(pointers.len())?;
            compile(self.compiler.0, &source, pointers.as_ptr(), count, null(), &IRESULT, &mut result)
        };
        made(status, result)
    }

    fn disassemble(&self, object: &[u8]) -> Result<Owned> {
        type Disassemble =
            unsafe extern "system" fn(Object, *const Buffer, *const Guid, *mut Object) -> HResult;
        let mut result: Object = null_mut();
        // SAFETY: as in `compile`.
        let status = unsafe {
            let disassemble: Disassemble = self.compiler.function(DISASSEMBLE);
            disassemble(self.compiler.0, &Buffer::new(object, 0), &IRESULT, &mut result)
        };
        made(status, result)
    }
}

fn made(status: HResult, object: Object) -> Result<Owned> {
    if status < 0 || object.is_null() {
        bail!("DXC ended with {status:#x}");
    }
    Ok(Owned(object))
}

/// Whether what a result is of went well.
fn succeeded(result: &Owned) -> bool {
    let mut status: HResult = -1;
    // SAFETY: the object is a result, whose first function is this.
    let asked = unsafe {
        let function: unsafe extern "system" fn(Object, *mut HResult) -> HResult = result.function(STATUS);
        function(result.0, &mut status)
    };
    asked >= 0 && status >= 0
}

/// One of the outputs of a result; empty where it has none.
fn output(result: &Owned, kind: u32) -> Vec<u8> {
    type Output = unsafe extern "system" fn(Object, u32, *const Guid, *mut Object, *mut Object) -> HResult;
    let mut blob: Object = null_mut();
    // SAFETY: the object is a result, and what it gives is a blob, whose bytes live as long as it does.
    unsafe {
        let function: Output = result.function(OUTPUT);
        if function(result.0, kind, &IBLOB, &mut blob, null_mut()) < 0 || blob.is_null() {
            return Vec::new();
        }
        let blob = Owned(blob);
        let start: unsafe extern "system" fn(Object) -> *const u8 = blob.function(BLOB_POINTER);
        let bytes: unsafe extern "system" fn(Object) -> usize = blob.function(BLOB_SIZE);
        let (start, bytes) = (start(blob.0), bytes(blob.0));
        if start.is_null() { Vec::new() } else { std::slice::from_raw_parts(start, bytes).to_vec() }
    }
}

impl Tool for Dxc {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn check(&mut self, request: &Request<'_>) -> Result<std::result::Result<Figures, String>> {
        let text = std::fs::read(request.path)?;
        // As wgpu calls it.
        let mut arguments = vec![request.path, "-E", request.entry, "-T", request.profile, "-HV", "2018"];
        if request.profile != "cs_6_0" {
            arguments.push("-enable-16bit-types");
        }
        let result = self.compile(&text, &arguments)?;
        if !succeeded(&result) {
            return Ok(Err(String::from_utf8_lossy(&output(&result, OUT_ERRORS)).into_owned()));
        }
        let object = output(&result, OUT_OBJECT);
        let disassembly = output(&self.disassemble(&object)?, OUT_DISASSEMBLY);
        let instructions = instructions(&String::from_utf8_lossy(&disassembly));
        if object.is_empty() || instructions == 0 {
            bail!("DXC made nothing of {}", request.path);
        }
        Ok(Ok(vec![("instructions".into(), instructions)]))
    }
}

/// Instructions of the functions in a disassembly of DXIL: indented lines between braces.
fn instructions(disassembly: &str) -> u64 {
    let mut inside = false;
    let mut count = 0;
    for line in disassembly.lines() {
        match line {
            _ if line.starts_with("define ") => inside = true,
            "}" => inside = false,
            _ if inside && line.starts_with("  ") && !line.trim_start().starts_with(';') => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    #[test]
    fn instructions_are_counted() {
        let text = "; comment\ndefine void @main() {\n  %1 = add i32 1, 2\n  ; note\n\n; <label>:3\n  ret void\n}\n\n  x\n";
        assert_eq!(super::instructions(text), 2);
    }
}
