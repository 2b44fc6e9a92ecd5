package zvhd

import (
	"testing"

	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) { codectest.Run(t, Format, codectest.Blocks(blockSize)) }

func TestFormat2(t *testing.T) { codectest.Run(t, Format2, codectest.Blocks(blockSize)) }

func TestZlib2(t *testing.T) {
	codectest.RunView(t, Zlib2, Format2, codectest.Blocks(blockSize), codectest.ExampleLen(15249408))
}
