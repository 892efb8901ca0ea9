//! The process's own memory, which glibc's allocator holds on to (mallopt(3),
//! malloc_trim(3)). Other allocators need no telling.

/// Keeps one heap for all threads: a dozen of them that mostly sleep would each
/// hold on to pages of its own. Before the first thread starts.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and changes how memory is taken from now on.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what was freed back to the system: after work that for a moment took
/// far more than it leaves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, locks the heap, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
