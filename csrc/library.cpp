// Says which Python schemas this object was built for; read from the file before it is loaded.
#define FASTDL_STRING_OF(x) #x
#define FASTDL_STRING(x) FASTDL_STRING_OF(x)

extern "C" __attribute__((visibility("default"), used)) const char fastdl_schema_hash[] =
    "fastdl-schemas:" FASTDL_STRING(FASTDL_SCHEMA_HASH);
