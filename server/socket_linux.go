package server

import (
	"fmt"
	"net"
	"syscall"
)

// peerUser is the user at the other end of a unix socket, as the kernel knows it.
func peerUser(c net.Conn) (uid int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1, fmt.Errorf("a %T is no unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1, err
	}
	uid = -1
	cerr := raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		if cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	if cerr != nil {
		err = cerr
	}
	return uid, err
}
