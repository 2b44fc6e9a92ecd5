package vmdk

import (
	"testing"

	"imagefs/codec/codectest"
)

func TestFormat(t *testing.T) {
	codectest.Run(t, Format, codectest.Blocks(grainLen))
}

func TestSparse(t *testing.T) {
	codectest.RunView(t, Sparse, Format, codectest.Blocks(grainLen), codectest.ExampleLen(4653056))
}
