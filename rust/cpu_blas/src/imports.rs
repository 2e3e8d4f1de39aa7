//! The functions that a loaded ELF library imports, and how to lead its calls elsewhere.
//!
//! Source: System V Application Binary Interface, chapter 5, "Dynamic Linking", and its supplements for the processors.

use std::ffi::{CStr, c_int, c_void};
use std::path::Path;

#[cfg(target_arch = "x86_64")]
const IMPORTS: [u32; 2] = [6, 7]; // R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT
#[cfg(target_arch = "aarch64")]
const IMPORTS: [u32; 2] = [1025, 1026]; // R_AARCH64_GLOB_DAT, R_AARCH64_JUMP_SLOT
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const IMPORTS: [u32; 2] = [u32::MAX; 2];

const DT_PLTRELSZ: i64 = 2;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_RELA: i64 = 7;
const DT_RELASZ: i64 = 8;
const DT_JMPREL: i64 = 23;

#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

#[repr(C)]
struct Relocation {
    offset: usize,
    info: u64,
    addend: i64,
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: u64,
}

struct Search<'a> {
    library: &'a str,
    name: &'a CStr,
    function: *const (),
    replaced: usize,
}

/// Lead calls of `name` from libraries whose file name begins with `library` to `function`; returns how many places
/// were changed.
pub fn replace(library: &str, name: &CStr, function: *const ()) -> usize {
    let mut search = Search { library, name, function, replaced: 0 };
    // SAFETY: the callback gets back the search, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.replaced
}

unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
    // SAFETY: the linker gives a description that is valid during the call, `replace` the search.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    if info.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: a name is a NUL-terminated string, and there are as many headers as said.
    let (name, headers) = unsafe {
        (
            CStr::from_ptr(info.dlpi_name),
            std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)),
        )
    };
    let file = Path::new(name.to_str().unwrap_or_default()).file_name().and_then(|file| file.to_str());
    if !file.unwrap_or_default().starts_with(search.library) {
        return 0;
    }
    if let Some(header) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) {
        // SAFETY: the header says where the library's dynamic section was loaded.
        unsafe { replace_in(info.dlpi_addr as usize, header.p_vaddr as usize, search) };
    }
    0
}

/// # Safety
/// `base` must be where a library is loaded and `dynamic` the place of its dynamic section in it.
unsafe fn replace_in(base: usize, dynamic: usize, search: &mut Search) {
    let mut values = [0usize; 24];
    let mut entry = (base + dynamic) as *const Dynamic;
    // SAFETY: the section ends with an entry of tag 0.
    unsafe {
        while (*entry).tag != 0 {
            if let Some(value) = values.get_mut((*entry).tag as usize) {
                *value = (*entry).value;
            }
            entry = entry.add(1);
        }
    }
    let value = |tag: i64| values[tag as usize];
    // glibc has made these addresses absolute, other linkers leave them relative to the library.
    let address = |tag: i64| if value(tag) < base { base + value(tag) } else { value(tag) };
    for (table, size) in [(DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)] {
        if value(table) == 0 {
            continue;
        }
        let count = value(size) / size_of::<Relocation>();
        // SAFETY: the table has that many entries; they refer to symbols and names of the library.
        unsafe {
            for relocation in std::slice::from_raw_parts(address(table) as *const Relocation, count) {
                let symbol = (address(DT_SYMTAB) as *const Symbol).add((relocation.info >> 32) as usize);
                let name = (address(DT_STRTAB) + (*symbol).name as usize) as *const std::ffi::c_char;
                let imported = IMPORTS.contains(&(relocation.info as u32));
                if imported
                    && CStr::from_ptr(name) == search.name
                    && write(base + relocation.offset, search.function)
                {
                    search.replaced += 1;
                }
            }
        }
    }
}

/// Write `function` to a place in an import table, made writable for it; whether that was allowed.
///
/// # Safety
/// `place` must be an entry of a loaded library's table of imports.
unsafe fn write(place: usize, function: *const ()) -> bool {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let start = place & !(page - 1);
    // SAFETY: the page belongs to the library's data, which stay readable; the entry is aligned, and who calls through
    // it at this moment reads the old or the new function.
    unsafe {
        // Left writable: the page may hold other entries, which the linker fills in when they are first called.
        if libc::mprotect(start as *mut c_void, page, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return false;
        }
        (*(place as *const std::sync::atomic::AtomicPtr<()>))
            .store(function.cast_mut(), std::sync::atomic::Ordering::Release);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn calls_from_a_library_are_led_elsewhere() {
        // SAFETY: the library is the system's own.
        let library = unsafe { libc::dlopen(c"libopenblas.so.0".as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "OpenBLAS isn't installed");
        // Led to where they go anyway, so that the library goes on working.
        let getenv = libc::getenv as *const ();
        assert_eq!(replace("no such library", c"getenv", getenv), 0);
        assert_eq!(replace("libopenblas", c"no such function", getenv), 0);
        assert!(replace("libopenblas", c"getenv", getenv) > 0, "OpenBLAS reads its settings with getenv");
    }
}
