package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"imagefs/codec"
)

// Bounds of the metadata.
const (
	maxJSON  = 1 << 20 // bytes
	maxDepth = 32
)

// object is a JSON object whose fields keep their order. A value is one of
// *object, []any, string, json.Number, bool and nil.
type object struct {
	keys []string
	vals map[string]any
}

// parseObject reads one object and nothing behind it. A field that stands twice,
// which readers choose from, is refused.
func parseObject(b []byte) (*object, error) {
	if len(b) > maxJSON {
		return nil, codec.Unsupportedf("metadata of %d bytes, longest is %d", len(b), maxJSON)
	}
	if !utf8.Valid(b) {
		return nil, codec.Corruptf("metadata is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := parse(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, codec.Corruptf("metadata has more behind its end")
	}
	o, ok := v.(*object)
	if !ok {
		return nil, codec.Corruptf("metadata is no JSON object")
	}
	return o, nil
}

func token(d *json.Decoder) (json.Token, error) {
	t, err := d.Token()
	if err != nil {
		return nil, codec.Corruptf("metadata: JSON at byte %d: %v", d.InputOffset(), err)
	}
	return t, nil
}

func parse(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, codec.Unsupportedf("metadata is deeper than %d", maxDepth)
	}
	t, err := token(d)
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		o := &object{vals: map[string]any{}}
		for d.More() {
			k, err := token(d)
			if err != nil {
				return nil, err
			}
			v, err := parse(d, depth+1)
			if err != nil {
				return nil, err
			}
			key, ok := k.(string)
			if _, twice := o.vals[key]; twice || !ok {
				return nil, codec.Corruptf("metadata has the field %.80q twice", key)
			}
			o.set(key, v)
		}
		_, err := token(d)
		return o, err
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parse(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := token(d)
		return list, err
	}
	return t, nil
}

// set puts v where the field is, or behind all others.
func (o *object) set(key string, v any) {
	if _, ok := o.vals[key]; !ok {
		o.keys = append(o.keys, key)
	}
	o.vals[key] = v
}

// text is a field that is a string, "" for any other.
func (o *object) text(key string) string {
	s, _ := o.vals[key].(string)
	return s
}

// object is a field that is an object, an empty one for any other.
func (o *object) object(key string) *object {
	if v, ok := o.vals[key].(*object); ok {
		return v
	}
	return &object{vals: map[string]any{}}
}

// format writes v without white space.
func format(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case *object:
		for i, k := range v.keys {
			b.WriteByte("{,"[min(i, 1)])
			quote(b, k)
			b.WriteByte(':')
			format(b, v.vals[k])
		}
		if len(v.keys) == 0 {
			b.WriteByte('{')
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			format(b, e)
		}
		b.WriteByte(']')
	case string:
		quote(b, v)
	case json.Number:
		b.WriteString(v.String())
	case bool:
		b.WriteString(map[bool]string{true: "true", false: "false"}[v])
	default:
		b.WriteString("null")
	}
}

// quote writes a string: what must be escaped is, and nothing else, but for
// what is no printable text.
func quote(b *bytes.Buffer, s string) {
	const hex = "0123456789abcdef"
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x2029 || r >= 0xfffe && r <= 0xffff:
			b.WriteString(`\u`)
			for shift := 12; shift >= 0; shift -= 4 {
				b.WriteByte(hex[r>>shift&15])
			}
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}

func (o *object) String() string {
	var b bytes.Buffer
	format(&b, o)
	return b.String()
}
