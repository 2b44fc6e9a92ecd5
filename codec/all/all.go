// Package all is the list of formats: adding one is its folder and a line here.
package all

import (
	"imagefs/codec"
	"imagefs/codec/raw"
)

// Formats are read and laid out; raw, which claims what no other does, is last.
var Formats = []codec.Format{
	raw.Format,
}

// Flavours are laid out only, and shown when asked for by name.
var Flavours = []codec.View{}
