package place

const (
	// DataShardsMax and ParityShardsMax bound a geometry to what the vectorised kernels of the
	// codec do in one pass.
	DataShardsMax   = 10
	ParityShardsMax = 10

	// ShardsMax bounds the shards of one pack.
	ShardsMax = DataShardsMax + ParityShardsMax

	// parityUsual is preferred as the upper bound of M: every further parity shard costs a write
	// and a verified file for each pack, while two sites gone already dominate what is left of the risk.
	parityUsual = 4

	// dataThinMax is the most data shards that a single parity shard may guard. While one of a
	// wide pack is being rebuilt every further bad sector would be a loss, so wider codes have M >= 2.
	dataThinMax = 4
)
