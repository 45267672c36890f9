from recipes.secret_sharing import main

main()
