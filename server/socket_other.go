//go:build !linux

package server

import (
	"net"
	"os"
)

// peerUser trusts the mode of the socket, which lets only its owner in.
func peerUser(net.Conn) (uid int, err error) { return os.Getuid(), nil }
