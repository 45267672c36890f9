from recipes.federated_averaging import main

main()
