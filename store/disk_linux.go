package store

import "syscall"

// diskOf says how many bytes a file system has free for this process, and in all.
func diskOf(folder string) (free, size int64, ok bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(folder, &st); err != nil {
		return 0, 0, false
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, true
}
