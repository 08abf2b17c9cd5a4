package store

// Priorities of mail: the batch takes the highest first.
const (
	PriorityLow    int16 = 10
	PriorityNormal int16 = 20
	PriorityHigh   int16 = 30
	PriorityUrgent int16 = 40
)

// Priority is what mail of this kind gets when its sender asks for none.
func (k Kind) Priority() int16 {
	switch k {
	case KindAgentMessage:
		return PriorityUrgent
	case KindInvoice, KindWorkOrder:
		return PriorityHigh
	case KindBulk:
		return PriorityLow
	}
	return PriorityNormal
}
