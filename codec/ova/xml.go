package ova

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"

	"imagefs/codec"
)

// Bounds of a descriptor.
const (
	maxDescriptor = 1 << 20 // bytes
	maxDepth      = 32
	maxNodes      = 20000 // elements and attributes
)

// node is an element with all that is in it.
type node struct {
	space, name string
	attrs       []xml.Attr
	kids        []*node
	text        string // of the element itself
}

// parseXML reads one element and what is in it. A document type, which is where
// entities come from, is refused.
func parseXML(b []byte) (*node, error) {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	d := xml.NewDecoder(bytes.NewReader(b))
	var root *node
	var open []*node
	var text [][]byte // of the open elements
	count := 0
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, codec.Corruptf("xml: %v", err)
		}
		switch t := t.(type) {
		case xml.Directive:
			return nil, codec.Unsupportedf("xml with a document type, %.40q", t)
		case xml.StartElement:
			n := &node{space: t.Name.Space, name: t.Name.Local, attrs: t.Copy().Attr}
			if count += 1 + len(t.Attr); count > maxNodes || len(open) == maxDepth {
				return nil, codec.Unsupportedf("xml with more than %d elements and attributes, or deeper than %d", maxNodes, maxDepth)
			}
			if err := n.checkAttrs(); err != nil {
				return nil, err
			}
			if len(open) > 0 {
				p := open[len(open)-1]
				p.kids = append(p.kids, n)
			} else if root != nil {
				return nil, codec.Corruptf("xml: a second element, %.80q, behind the first", n.name)
			} else {
				root = n
			}
			open, text = append(open, n), append(text, nil)
		case xml.EndElement:
			k := len(open) - 1
			open[k].text = string(text[k])
			open, text = open[:k], text[:k]
		case xml.CharData:
			if k := len(open) - 1; k >= 0 {
				text[k] = append(text[k], t...)
			} else if len(bytes.TrimSpace(t)) > 0 {
				return nil, codec.Corruptf("xml: text outside the element, %.40q", t)
			}
		}
	}
	if root == nil {
		return nil, codec.Corruptf("xml without an element")
	}
	return root, nil
}

// checkAttrs refuses two of a name, which readers would choose from.
func (n *node) checkAttrs() error {
	if len(n.attrs) > 100 {
		return codec.Unsupportedf("xml: %d attributes of %.80q, up to 100 are known", len(n.attrs), n.name)
	}
	for i, a := range n.attrs {
		for _, b := range n.attrs[:i] {
			if a.Name == b.Name {
				return codec.Corruptf("xml: %.80q has two attributes %.80q", n.name, a.Name.Local)
			}
		}
	}
	return nil
}

// attr is an attribute of OVF, whose prefix some writers leave out.
func (n *node) attr(name string) string {
	if v := n.attrIn(nsOVF, name); v != "" {
		return v
	}
	if v := n.attrIn(nsOVF2, name); v != "" {
		return v
	}
	return n.attrIn("", name)
}

func (n *node) attrIn(space, name string) string {
	for _, a := range n.attrs {
		if a.Name.Space == space && a.Name.Local == name {
			return strings.TrimSpace(a.Value)
		}
	}
	return ""
}

// all are the children of a name, in any of the namespaces of OVF and CIM.
func (n *node) all(name string) []*node {
	var found []*node
	for _, k := range n.kids {
		if k.name == name && k.space != nsVMW && k.space != nsVBox {
			found = append(found, k)
		}
	}
	return found
}

// one is the first child of a name, an empty element where there is none.
func (n *node) one(name string) *node {
	if all := n.all(name); len(all) > 0 {
		return all[0]
	}
	return &node{}
}

// line is the text of a child as one line.
func (n *node) line(name string) string {
	return strings.TrimSpace(strings.NewReplacer("\r", " ", "\n", " ", "\t", " ").Replace(n.one(name).text))
}

// number reads a decimal number of at most limit.
func number(s string, limit int64) (int64, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 63)
	return int64(n), err == nil && int64(n) <= limit
}

// units are the names of bytes that old writers use.
var units = map[string]int64{
	"": 1, "byte": 1, "bytes": 1,
	"kb": 1 << 10, "kilobyte": 1 << 10, "kilobytes": 1 << 10,
	"mb": 1 << 20, "megabyte": 1 << 20, "megabytes": 1 << 20,
	"gb": 1 << 30, "gigabyte": 1 << 30, "gigabytes": 1 << 30,
	"tb": 1 << 40, "terabyte": 1 << 40, "terabytes": 1 << 40,
}

// unit is the number of bytes in a unit such as "byte * 2^20" (DSP0004, "C.1
// Programmatic unit"), of which base and power are kept small.
func unit(s string) (int64, error) {
	s = strings.ToLower(strings.Join(strings.Fields(s), ""))
	if n, ok := units[s]; ok {
		return n, nil
	}
	bad := codec.Unsupportedf("unit %.80q, want one such as %q", s, "byte * 2^20")
	rest, ok := strings.CutPrefix(s, "byte*")
	if !ok {
		return 0, bad
	}
	base, power, pow := strings.Cut(rest, "^")
	b, ok := number(base, 1<<40)
	if !ok || b == 0 {
		return 0, bad
	}
	if !pow {
		return b, nil
	}
	p, ok := number(power, 62)
	if !ok {
		return 0, bad
	}
	n := int64(1)
	for range p {
		if n > math.MaxInt64/b {
			return 0, bad
		}
		n *= b
	}
	return n, nil
}

// quantity is a number of a unit in bytes.
func quantity(n, unitText string) (int64, error) {
	u, err := unit(unitText)
	if err != nil {
		return 0, err
	}
	v, ok := number(n, codec.MaxSize/u)
	if !ok {
		return 0, codec.Corruptf("%.40q of %.40q: no number, or too large", n, unitText)
	}
	return v * u, nil
}
