//go:build !linux

package dul

import "syscall"

func quickAck(syscall.RawConn) {}

func limitUnacked(syscall.RawConn) {}
