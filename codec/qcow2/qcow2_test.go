package qcow2

import (
	"testing"

	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) { codectest.Run(t, Format) }
